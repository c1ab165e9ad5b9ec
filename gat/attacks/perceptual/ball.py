"""The images within a perceptual distance of their originals, and the ways back into that ball."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from gat.attacks.frozen import frozen
from gat.attacks.objective import mixed_precision
from gat.latents import Images, PerExample, Rows, Verdicts, per_example
from gat.perceptual import Embedding, Phi, distance, open_network

Projection = Literal["boundary", "newton", "none"]
"""'boundary' ends on the boundary, inside (ours); 'newton' is the published one, which ends well inside; 'none' goes nowhere."""

SHORT = 1e-4  # how far inside, as a share of the radius, an image is aimed that is to end on the boundary


class Ball:
    """Images `x` with `|phi(x) - phi(x0)| <= radius`, around every original `x0`. Open it with `open_ball`.

    Everywhere, `rows` says which originals the images belong to. The originals' embedding is computed once.

    Attributes:
        forwards, backwards: passes that each example has cost so far, besides those that it shared.
    """

    def __init__(self, phi: Phi, originals: Images, radius: float, width: int) -> None:
        self.phi, self.originals, self.radius, self.width = phi, originals, radius, width
        self.center = phi.of_all(originals, width)
        self.forwards = torch.ones(len(originals), dtype=torch.long, device=originals.device)
        self.backwards = torch.zeros_like(self.forwards)

    def embed(self, images: Images, rows: Rows, shared: bool = False) -> Embedding:
        """`phi` of the images, differentiable; `shared` takes it from the classifier's own pass if that has just been made."""
        if shared and self.phi.has_seen(images):
            return self.phi.recall(images)
        self.forwards.index_add_(0, rows, torch.ones_like(rows))
        return self.phi(images)

    def pull_back(self, embedding: Embedding, images: Images, rows: Rows, v: Embedding) -> Tensor:
        """J^T v at `images`, with J the Jacobian of `embedding` there."""
        self.backwards.index_add_(0, rows, torch.ones_like(rows))
        (found,) = torch.autograd.grad(embedding, images, v, retain_graph=True)
        return found

    def distance(self, images: Images, rows: Rows) -> PerExample:
        """From the originals, by one pass."""
        return self.from_center(self.embed(images, rows), rows)

    def from_center(self, embedding: Embedding, rows: Rows) -> PerExample:
        """Distance of embeddings to those of the originals."""
        return distance(embedding, self.center[rows])

    def in_parts(
        self, function: Callable[[Images, Rows], Tensor], images: Images, rows: Rows | None = None
    ) -> Tensor:
        """`function` of images and rows, in batches of the ball's width; without rows, of one image per original."""
        rows = torch.arange(len(images), device=images.device) if rows is None else rows
        parts = zip(images.split(self.width), rows.split(self.width), strict=True)
        return torch.cat([function(*part) for part in parts])

    @torch.no_grad()
    def measure(self, images: Images) -> PerExample:
        """Distance of all images, one per original."""
        return self.in_parts(self.distance, images)

    def project(self, kind: Projection, images: Images, rows: Rows, looks: int = 8) -> Images:
        """Images outside back into the ball; those inside are returned as they are."""
        if kind == "boundary":
            return self.to_boundary(images, rows, looks)
        if kind == "newton":
            return self.newton(images, rows)
        return images

    @torch.no_grad()
    def to_boundary(self, images: Images, rows: Rows, looks: int = 8) -> Images:
        """The point of the straight line to the original that lies on the boundary (ours).

        A false-position search (Illinois) for the distance `radius`, from the inside: it returns the outermost point that was
        seen to be inside, so the result never lies outside. Where the distance grows evenly along the line, three looks
        come within a thousandth of the radius.

        Args:
            looks: passes on top of the first.
        """
        home = self.originals[rows]
        goal = self.radius * (1 - SHORT)
        reached = self.distance(images, rows)
        outside = reached > self.radius
        if not _worth(outside):
            return images
        low, high = torch.zeros_like(reached), torch.ones_like(reached)
        below, above = torch.full_like(reached, -goal), reached - goal
        was_inside = was_outside = torch.zeros_like(outside)
        for _ in range(looks):
            t = low - (high - low) * below / (above - below)
            seen = self.distance(home + per_example(t, home) * (images - home), rows)
            inside = seen <= self.radius
            gap = seen - goal
            # An end that stays for a second time counts half, or the search would come from one side for ever.
            below, above = (
                torch.where(inside, gap.clamp(max=-1e-9), torch.where(was_outside, below / 2, below)),
                torch.where(inside, torch.where(was_inside, above / 2, above), gap),
            )
            low, high = torch.where(inside, t, low), torch.where(inside, high, t)
            if not _worth(outside & ~(inside & (gap.abs() <= SHORT * self.radius))):
                break
            was_inside, was_outside = inside, ~inside
        on_line = home + per_example(low, home) * (images - home)
        return torch.where(per_example(outside, images), on_line, images)

    @torch.no_grad()
    def newton(self, images: Images, rows: Rows, looks: int = 10, overshoot: float = 0.1) -> Images:
        """The published projection, with its faults (Laidlaw et al.'s code; reimplemented).

        Newton steps on the distance that aim `overshoot`, in units of distance, inside the ball, 1 + `overshoot` times as long
        as they should be, along the sum of all gradients so far (theirs is never reset). What is outside after `looks` steps
        is bisected, and of that the last point tried is returned, which may lie outside by a thousandth of the line. Theirs then
        bisects the whole batch; here an example does not depend on others.
        """
        x, total, active = images, torch.zeros_like(images), torch.ones_like(rows, dtype=torch.bool)
        for _ in range(looks):
            if not _worth(active):
                break
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                reached = self.distance(leaf, rows)
                self.backwards.index_add_(0, rows, torch.ones_like(rows))
                (slope,) = torch.autograd.grad(reached.sum(), leaf)
            total = total + slope
            excess = (reached.detach() - self.radius).clamp(min=0)
            active = active & (excess > 0)
            length = torch.where(active, (excess + overshoot) * (1 + overshoot), 0.0)
            square = total.flatten(1).square().sum(1).clamp(min=1e-20)
            moved = (x - per_example(length / square, x) * total).clamp(0, 1)
            x = torch.where(per_example(active, x), moved, x)
        if not _worth(active):
            return x
        return torch.where(per_example(active, x), self._bisect(x, rows), x)

    def _bisect(self, images: Images, rows: Rows, looks: int = 10) -> Images:
        home = self.originals[rows]
        low = torch.zeros_like(rows, dtype=images.dtype)
        high, tried = low + 1, images
        for _ in range(looks):
            t = (low + high) / 2
            tried = home + per_example(t, home) * (images - home)
            outside = self.distance(tried, rows) > self.radius
            low, high = torch.where(outside, low, t), torch.where(outside, t, high)
        return tried


def _worth(mask: Verdicts) -> bool:
    """Whether to go on for the sake of any example. Asking an accelerator would take longer than going on."""
    return mask.device.type != "cpu" or bool(mask.any())


@contextmanager
def open_ball(
    network: str, layers: Sequence[str] | None, model: nn.Module, originals: Images, radius: float, width: int
) -> Iterator[Ball]:
    """The ball as `network` sees it, in float32, with `model` and the network in eval mode; both are left as found.

    Raises:
        ValueError: see `gat.perceptual.open_network` and `Phi`.
    """
    opened = open_network(network, model, originals)
    with frozen(model, opened.module), mixed_precision(originals.device, None):
        with torch.no_grad():
            phi = Phi(opened.module, opened.layers if layers is None else layers, originals)
        with phi:
            yield Ball(phi, originals, radius, width)


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions without TF32, which rounds to three digits: for distances that are reported or kept to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
