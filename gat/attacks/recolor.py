"""Functional adversarial attacks on colours (ReColorAdv, Laidlaw & Feizi 2019)."""

from typing import Literal

from pydantic import Field

from gat.attacks.fields import FieldAttack, FieldSpace
from gat.attacks.worst import WorstOf
from gat.latents import Images
from gat.spaces.color import UNITS, ColorSpace


class Recolor(FieldAttack):
    """Moves all pixels of one colour to another, within `bound` in CIELUV.

    Attributes:
        bound: largest change of a colour, 1 being 100 of L* and 200 of u* and v*.
        channels: factors of the bound for L*, u* and v*.
        grid: nodes of the map of colours along L*, u* and v*.
        smoothness: 0.0036, times the roughness over the bound, is the published 0.06 at a bound of 0.06.
    """

    name: Literal["recolor"] = "recolor"
    bound: float = Field(0.06, ge=0)
    channels: tuple[float, float, float] = (1.0, 1.0, 1.0)
    grid: tuple[int, int, int] = (16, 32, 32)
    smoothness: float = Field(0.0036, ge=0)

    @property
    def limits(self) -> dict[str, float]:
        return {"color": self.bound}

    def space(self, images: Images) -> FieldSpace:
        return ColorSpace(images, self.grid, self.channels)

    @property
    def summary(self) -> str:
        return (
            f"{describe_colors(self.bound, self.channels)}; {'x'.join(map(str, self.grid))} nodes; {self.how}"
        )

    @classmethod
    def paper(cls, bound: float = 0.06, steps: int = 100) -> "Recolor":
        """As in the tables of Laidlaw et al. 2021: Adam's steps of 0.001, of which the last iterate counts.

        What differs from the published code makes it a little stronger. A map of zero changes no colour (there it changes saturated
        ones, by up to 0.35). Not the nodes are pulled into the gamut of sRGB in every step, but the pixels, by confining their
        chromaticity, and those at the end of the range keep their gradient. Nodes that no pixel uses do not count as rough.
        """
        share = 0.001 / bound if bound else None
        return cls(bound=bound, steps=steps, step_size=share, keep="last", stop_when_fooled=False)

    @classmethod
    def strict(cls, bound: float = 0.06) -> WorstOf:
        """The worst per example over published and other optimisers, step sizes and numbers of steps."""
        return WorstOf(
            attacks=(
                cls(bound=bound, rule="sign", smoothness=0),
                cls(bound=bound),
                cls(bound=bound, steps=100, step_size=0.001 / 0.06, smoothness=0),
                cls(bound=bound, steps=100, rule="sign", smoothness=0, loss="task", random_start=True),
            )
        )


def describe_colors(bound: float, channels: tuple[float, float, float]) -> str:
    """The bound in units of CIELUV."""
    parts = zip(("L*", "u*", "v*"), UNITS, channels, strict=True)
    return "color <= " + ", ".join(f"{bound * unit * factor:g} {name}" for name, unit, factor in parts)
