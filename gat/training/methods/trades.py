"""TRADES: clean images keep their label, attacked ones the answer to their clean image."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gat.attacks import PGD
from gat.attacks.ascent import ascend
from gat.attacks.frozen import frozen
from gat.attacks.objective import mixed_precision
from gat.attacks.steps import Steps
from gat.latents import Images, Latents, PerExample, Rows, Verdicts, seeded_normal
from gat.training.batch_norm import routed
from gat.training.method import Batch, Lesson, Method, Tools, divergence, seen


class TRADES(Method):
    """loss(f(x), y) + beta KL(f(x) || f(x')), where x' makes that divergence large within a ball (Zhang et al. 2019, Eq. 5 and
    Algorithm 1; ours).

    The answer to the clean image is computed once per attack. Clean and attacked images learn in one pass, so they share batch
    statistics. With beta 0 it is standard training.

    Attributes:
        beta: weight of the divergence; the paper's 1/lambda.
        eps: radius of the Linf ball, for images in [0, 1].
        steps, step_size: of the ascent, whose last iterate is taken.
        start_noise: standard deviation of what is added to the clean image first: at the image itself the gradient is zero.
        seed: of that noise.
    """

    name: Literal["trades"] = "trades"
    beta: float = Field(6.0, ge=0)
    eps: float = Field(8 / 255, ge=0)
    steps: int = Field(10, ge=0)
    step_size: float = Field(2 / 255, gt=0)
    start_noise: float = Field(1e-3, ge=0)
    seed: int = 0

    def trained_on(self) -> tuple[str, ...]:
        return seen(PGD(eps=self.eps, steps=self.steps)) if self.beta else ()

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        images, labels = batch.images, batch.labels
        if self.beta == 0:
            return Lesson(images, labels, len(images))
        n = len(images)
        moved, reached = self.diverging(tools, model, images, key)
        ones = torch.ones(n, device=images.device)
        return Lesson(
            torch.cat([images, moved]),
            torch.cat([labels, labels]),
            n,
            {"divergence": float(reached.mean())},
            weights=torch.cat([ones, 0 * ones]),
            anchors=torch.arange(n, device=images.device).repeat(2),
            pulls=torch.cat([0 * ones, self.beta * ones]),
        )

    @torch.no_grad()
    def diverging(
        self, tools: Tools, model: nn.Module, images: Images, key: int
    ) -> tuple[Images, PerExample]:
        """Images in the ball whose answers are far from those to `images`, and how far."""
        steps = Steps({"pixels": self.step_size}, "linf", {"pixels": self.eps}, {"pixels": (0.0, 1.0)})
        ids = torch.arange(len(images), device=images.device) + key * len(images)
        noise = self.start_noise * seeded_normal(self.seed, ids, tuple(images.shape[1:]), "trades")
        compute, home = tools.compute, {"pixels": images}

        def answers(some: Images) -> Tensor:
            with mixed_precision(images.device, compute.autocast):
                outputs: Tensor = model(some)
            return outputs.float()

        with frozen(model):
            clean = torch.cat([answers(part) for part in images.split(compute.width)])

            def objective(latents: Latents, rows: Rows) -> tuple[PerExample, Verdicts]:
                kl = divergence(clean[rows], answers(latents["pixels"]))
                return kl, torch.zeros_like(kl, dtype=torch.bool)

            with routed(model, 0):
                found = ascend(
                    objective, {"pixels": steps.confine("pixels", images + noise, images)}, steps, self.steps,
                    stop_when_fooled=False, keep="last", width=compute.width, center=home,
                    sync_every=compute.sync_every, gradient_scale=compute.gradient_scale,
                )  # fmt: skip
        return found.latents["pixels"], found.loss
