"""The control of GAT: its images, without the attack."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from gat.attacks.frozen import frozen
from gat.attacks.objective import mixed_precision
from gat.protocols import MeasuredSpace
from gat.training.method import Batch, Lesson, Method, Tools, check_oracle, read_by_oracle


class RandomLatents(Method):
    """Clean images and as many random ones of a generator, those that the model reads as they were meant: GAT that takes no step.

    What GAT is better than this at is due to its adversarial part. The model reads them in the attack's precision, as it does
    what GAT moves.

    Attributes:
        oversample: random latents per clean image; the surplus makes up for those that are read otherwise.
        oracle_filter: also leave out images on which the oracle does not read the label, and of label maps the pixels that it reads
            otherwise.
        seed: of the latents.
    """

    name: Literal["random_latents"] = "random_latents"
    oversample: float = Field(1.5, gt=0)
    oracle_filter: bool = False
    seed: int = 0

    @property
    def needs_generator(self) -> bool:
        return True

    def num_drawn(self, num_clean: int) -> int:
        return max(round(self.oversample * num_clean), 1)

    def check(self, tools: Tools) -> None:
        if tools.generator is None:
            raise ValueError(f"{self.name} needs a generator; name one under `generator`")
        if self.oracle_filter:
            check_oracle(tools)

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        space = tools.generator
        assert space is not None
        images, labels = batch.images, batch.labels
        count = self.num_drawn(len(images))
        conditions, meant, ids = batch.draws(space, count, key)

        # The oracle and the model as it is now say which ones will do.
        limit = space.max_width(()) if isinstance(space, MeasuredSpace) else None
        width = min(tools.compute.width, limit or count)
        seen, shown, usable = [], [], []
        with frozen(model), torch.no_grad():
            for rows in torch.arange(count).split(width):
                here = rows.to(labels.device)
                latents = space.sample(conditions[here], ids[rows], self.seed)
                renderer, labels_here = space.freeze(latents, ()), meant[here]
                found = renderer({}, torch.arange(len(rows), device=labels.device)).float()
                with mixed_precision(labels.device, tools.compute.autocast):
                    answers = model(found)
                reads = ~tools.task.wrong(answers, labels_here)
                if self.oracle_filter:
                    oracle_reads, labels_here = read_by_oracle(tools, found, labels_here)
                    reads &= oracle_reads
                seen.append(found)
                shown.append(labels_here)
                usable.append(reads)
        chosen = torch.cat(usable).nonzero().squeeze(1)[: len(images)]
        lesson_images = torch.cat([images, torch.cat(seen)[chosen]])
        return Lesson(
            lesson_images,
            torch.cat([labels, torch.cat(shown)[chosen]]),
            num_clean=len(lesson_images),
            facts={"generated_share": len(chosen) / len(lesson_images)},
        )
