"""Attacks that training on norm balls does not foresee: worst-case JPEG artefacts, elastic warps, fog, snow and Gabor noise.

Kang et al. 2019 ("Testing Robustness Against Unforeseen Adversaries") and ImageNet-UA (Kaufmann et al. 2023), on the spaces of
`gat.spaces.corruptions`. Differences from the published programs, besides those their docstrings tell: every example has a kernel,
a wind and a place for its flakes of its own, the same in all iterations and whatever batch it is in; zero budget is the identity;
the best iterate counts.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeAlias

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from gat.attacks.ascent import Slots
from gat.attacks.image_attack import ImageAttack, positions
from gat.attacks.run import Compute, Outcome, run_attack
from gat.attacks.steps import Norm, Steps, l2_norm, project
from gat.attacks.worst import WorstOf
from gat.latents import Images, Latents, PerExample, Rows, per_example, seeded_uniform
from gat.protocols import Task
from gat.spaces.corruptions import ElasticSpace, FogSpace, GaborSpace, JPEGSpace, SnowSpace

Strength = Literal["low", "medium", "high"]
Preset = Literal["cifar10", "imagenet"]
Corruption: TypeAlias = ElasticSpace | FogSpace | GaborSpace | JPEGSpace | SnowSpace
SIDE_PX: dict[Preset, int] = {"cifar10": 32, "imagenet": 224}  # of the images that a preset was made for


@dataclass(frozen=True)
class Published:
    """Settings of ImageNet-UA.

    Attributes:
        eps: at low, medium and high strength.
        step_size, steps: of sign steps, the same for all strengths.
    """

    eps: tuple[float, float, float]
    step_size: float
    steps: int


@dataclass(frozen=True)
class SignSteps:
    """Sign steps of one size in all sites, then into the ball of the budget, whichever its norm: the published rule.

    Under an L2 budget it moves all entries alike, wherever the gradient is large, and is much weaker than `Steps`.
    """

    size: float
    eps: float
    norm: Norm

    def __call__(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        return {
            name: self.confine(name, x + self.size * gradient[name].sign(), slots.home[name])
            for name, x in latents.items()
        }

    def confine(
        self, name: str, x: Float[Tensor, "b ..."], home: Float[Tensor, "b ..."]
    ) -> Float[Tensor, "b ..."]:
        """Into the ball."""
        return project(x, home, self.eps, self.norm)


class Unforeseen(ImageAttack):
    """What the attacks of this file share. Sizes in pixels are scaled from the preset's side to the image's.

    Attributes:
        strength: which of the published budgets.
        preset: published for which data, that is size: 'cifar10' (32 pixels a side) or 'imagenet' (224).
        eps: budget instead of the published one.
        steps: None is the published number. 0 is the control that only draws at random.
        step_size: None is the published one for sign steps, 5 eps / steps for L2 steps.
        variant: 'steepest' starts anywhere in the ball and takes the steps of its norm; 'published' starts where the published
            programs start and takes sign steps in any ball.
        restarts: the worst of so many starts per example counts; flakes and kernels keep their places, which are the seed's.
        keep: 'best' iterate per example, or the 'last' as published.
        stop_when_fooled: an example is done once fooled.
    """

    name: str = ""
    strength: Strength = "medium"
    preset: Preset = "cifar10"
    eps: float | None = Field(None, ge=0)
    steps: int | None = Field(None, ge=0)
    step_size: float | None = Field(None, gt=0)
    variant: Literal["steepest", "published"] = "steepest"
    restarts: int = Field(1, ge=1)
    keep: Literal["best", "last"] = "best"
    stop_when_fooled: bool = True

    norm: ClassVar[Norm] = "linf"
    limits: ClassVar[tuple[float, float] | None] = (
        None  # of latents that have a range of their own; not in the published variant
    )
    published: ClassVar[dict[Preset, Published]]

    @abstractmethod
    def space(self, images: Images, ids: Rows) -> Corruption:
        """Of these images."""

    @abstractmethod
    def first(self, uniform: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Where a site begins, from uniform numbers in (0, 1), up to projection into the ball."""

    @classmethod
    def paper(cls, strength: Strength = "medium", preset: Preset = "cifar10") -> Self:
        """As published: starts, step sizes and counts, and the last iterate even if an earlier one fooled."""
        return cls(strength=strength, preset=preset, variant="published", keep="last", stop_when_fooled=False)

    @classmethod
    def strict(cls, strength: Strength = "medium", preset: Preset = "cifar10") -> WorstOf:
        """The worst of half and twice the usual step size, each with two starts, and with flakes and kernels drawn anew."""
        size = cls(strength=strength, preset=preset).size
        return WorstOf(
            attacks=tuple(
                cls(strength=strength, preset=preset, step_size=factor * size, restarts=2, seed=seed)
                for seed, factor in enumerate((0.5, 2.0))
            )
        )

    @property
    def budget(self) -> float:
        """Radius of the ball."""
        index = ("low", "medium", "high").index(self.strength)
        return self.published[self.preset].eps[index] if self.eps is None else self.eps

    @property
    def num_steps(self) -> int:
        """Gradient steps."""
        return self.published[self.preset].steps if self.steps is None else self.steps

    @property
    def size(self) -> float:
        """Of a step."""
        if self.step_size is not None:
            return self.step_size
        if self.norm == "l2" and self.variant == "steepest":
            return 5 * self.budget / max(self.num_steps, 1)
        return self.published[self.preset].step_size

    @property
    def summary(self) -> str:
        strength = self.strength if self.eps is None else "given"
        return (
            f"{self.norm} {self.budget:.3g} ({self.preset} {strength}); {self.goal}; {self.num_steps} steps of {self.size:.3g}; "
            f"{self.keep} iterate; {self.variant}; {self.restarts} x random start"
        )

    @property
    def bounds(self) -> dict[str, float]:
        return {f"{self.norm}_{self.name}": self.budget}

    def run(
        self,
        task: Task,
        model: nn.Module,
        images: Images,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        compute: Compute | None = None,
        record: bool = False,
        ids: Tensor | None = None,
    ) -> Outcome:
        ids = positions(images, ids)
        space = self.space(images.float(), ids)
        rest = space.rest()
        move: SignSteps | Steps = SignSteps(self.size, self.budget, self.norm)
        if self.variant == "steepest":
            sites = list(rest)
            size, eps = dict.fromkeys(sites, self.size), dict.fromkeys(sites, self.budget)
            limits = {} if self.limits is None else dict.fromkeys(sites, self.limits)
            move = Steps(size, self.norm, eps, limits)
        starts = [
            {
                name: move.confine(name, self.first(seeded_uniform(self.seed, ids, site.shape, f"{name}/{restart}")), rest[name])
                for name, site in space.sites.items()
            }
            for restart in range(self.restarts)
        ]  # fmt: skip
        return run_attack(
            task, model, space, rest, labels, move, list(rest), self.num_steps,
            goal=self.goal, targets=targets, stop_when_fooled=self.stop_when_fooled, keep=self.keep, starts=starts,
            compute=compute, record=record,
        )  # fmt: skip

    def _scale(self, images: Images) -> float:
        """Pixels of these images per pixel of the preset's."""
        return min(images.shape[2:]) / SIDE_PX[self.preset]


class JPEG(Unforeseen):
    """Worst-case JPEG artefacts: DCT coefficients of Y'CbCr blocks move by up to eps each. See `JPEGSpace`.

    Attributes:
        quality: None adds the moves to the image as they are, as ImageNet-UA does; eps is for images in [0, 1]. 1..100 rounds the moved
            coefficients to the levels of that JPEG quality, as Kang et al. do; eps counts levels, and a step is a fifth of it. The
            three strengths, 0.15, 0.3 and 0.45, are ours: below half a level the attack chooses which way coefficients are rounded,
            so that images look like JPEGs of that quality; above, it may light up every frequency that was zero.
    """

    name: Literal["jpeg"] = "jpeg"
    quality: int | None = Field(None, ge=1, le=100)
    published: ClassVar[dict[Preset, Published]] = {
        "cifar10": Published((1 / 255, 3 / 255, 6 / 255), 0.0024, 50),
        "imagenet": Published((1 / 255, 3 / 255, 6 / 255), 0.0024, 80),
    }

    @property
    def budget(self) -> float:
        if self.quality is None or self.eps is not None:
            return super().budget
        return {"low": 0.15, "medium": 0.3, "high": 0.45}[self.strength]

    @property
    def size(self) -> float:
        if self.quality is None or self.step_size is not None:
            return super().size
        return self.budget / 5

    @property
    def summary(self) -> str:
        return super().summary + ("" if self.quality is None else f"; quality {self.quality}")

    def space(self, images: Images, ids: Rows) -> Corruption:
        return JPEGSpace(images, self.quality)

    def first(self, uniform: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return self.budget * (uniform if self.variant == "published" else uniform * 2 - 1)


class Elastic(Unforeseen):
    """Worst-case smooth warps: eps bounds the L2 norm of the whole coarse flow, in half image sides. See `ElasticSpace`.

    The published program darkens what comes from beyond the border and shifts images by half a pixel even at rest; this does not.
    """

    name: Literal["elastic"] = "elastic"
    norm: ClassVar[Norm] = "l2"
    published: ClassVar[dict[Preset, Published]] = {
        "cifar10": Published((0.1, 0.25, 0.5), 0.006, 30),
        "imagenet": Published((0.1, 0.25, 0.5), 0.003, 100),
    }
    NODES: ClassVar[dict[Preset, int]] = {"cifar10": 16, "imagenet": 7}  # as published, a side

    def space(self, images: Images, ids: Rows) -> Corruption:
        return ElasticSpace(images, self.NODES[self.preset])

    def first(self, uniform: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return on_sphere(uniform * 2 - 1, self.budget)


class Fog(Unforeseen):
    """Worst-case fog: every displacement of the plasma is at most eps. See `FogSpace`.

    Step sizes and numbers as published; the strengths are ours, since fog is not among the suite's eight core attacks.
    """

    name: Literal["fog"] = "fog"
    published: ClassVar[dict[Preset, Published]] = {
        "cifar10": Published((0.2, 0.4, 0.5), 0.05, 40),
        "imagenet": Published((0.2, 0.4, 0.5), 0.05, 80),
    }

    def space(self, images: Images, ids: Rows) -> Corruption:
        return FogSpace(images)

    def first(self, uniform: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return self.budget * uniform  # of both signs it would mostly cancel


class Snow(Unforeseen):
    """Worst-case snow: eps bounds the L2 norm of the flakes' intensities. See `SnowSpace`.

    Five layers. ImageNet: flakes of up to 15 pixels, one for 15 x 15 pixels of a layer; CIFAR-10: 3 pixels, one for 10 x 10. The
    published start makes all flakes about equally bright; ours makes few bright and most faint.
    """

    name: Literal["snow"] = "snow"
    norm: ClassVar[Norm] = "l2"
    # Up to white with its soft edges; more hardly shows, and takes the gradient.
    limits: ClassVar[tuple[float, float] | None] = (0.0, 1.5)
    published: ClassVar[dict[Preset, Published]] = {
        "cifar10": Published((3.0, 4.0, 5.0), 0.2, 20),
        "imagenet": Published((10.0, 15.0, 25.0), 0.1, 100),
    }
    FLAKE_AND_SPACING_PX: ClassVar[dict[Preset, tuple[float, float]]] = {
        "cifar10": (3.0, 10.0),
        "imagenet": (15.0, 15.0),
    }

    def space(self, images: Images, ids: Rows) -> Corruption:
        flake, spacing = (length * self._scale(images) for length in self.FLAKE_AND_SPACING_PX[self.preset])
        return SnowSpace(
            images, ids, self.seed, flake_px=flake, spacing_px=spacing, full_at=self.budget or 1.0
        )

    def first(self, uniform: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return on_sphere((uniform * (-0.2 if self.variant == "published" else -3.0)).exp(), self.budget)


class Gabor(Unforeseen):
    """Worst-case Gabor noise: every weight of the sparse convolution is at most eps. See `GaborSpace`.

    A tenth of all pixels in each channel carries a weight. Windows of 23 pixels for both presets; waves in 3 (CIFAR-10) or 5 directions.

    The published program draws a new kernel, one for the whole batch, at every step. With one that stays, weights can line up to
    waves of high contrast: at the published budgets the optimised attack is much stronger than the published one.
    """

    name: Literal["gabor"] = "gabor"
    published: ClassVar[dict[Preset, Published]] = {
        "cifar10": Published((0.02, 0.03, 0.04), 0.0025, 80),
        "imagenet": Published((0.02, 0.04, 0.06), 0.0003125, 100),
    }
    DIRECTIONS: ClassVar[dict[Preset, int]] = {"cifar10": 3, "imagenet": 5}

    def space(self, images: Images, ids: Rows) -> Corruption:
        window = 23 * self._scale(images)
        return GaborSpace(images, ids, self.seed, window_px=window, directions=self.DIRECTIONS[self.preset])

    def first(self, uniform: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        if self.variant == "published":  # all of one value
            return self.budget * uniform[:, :1, :1].expand_as(uniform)
        return self.budget * (uniform * 2 - 1)


def on_sphere(x: Float[Tensor, "b ..."], radius: float) -> Float[Tensor, "b ..."]:
    """`x`, with this L2 norm."""
    length: PerExample = l2_norm(x)
    return x * per_example(radius / length.clamp(min=1e-12), x)
