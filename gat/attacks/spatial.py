"""Spatially transformed adversarial examples (stAdv, Xiao et al. 2018), with a bound on the flow."""

from typing import Literal

from pydantic import Field

from gat.attacks.fields import FieldAttack, FieldSpace
from gat.attacks.worst import WorstOf
from gat.latents import Images
from gat.spaces.flow import FlowSpace, FlowUnit, Padding


class Spatial(FieldAttack):
    """Bends the image: every pixel is looked up up to `bound` beside its place, in each direction.

    The paper bounds no flow and minimises loss and roughness by L-BFGS; bound, Adam and weights are those of Laidlaw et al. 2021,
    whose experiments most tables follow. Labels of pixels and boxes keep their places, while what they are about moves by up to `bound`.

    Attributes:
        bound: of the flow along either axis.
        unit: of the bound: 'grid' is half the image's side (0.05 are 0.7 px of 28 and 5.6 px of 224), 'px' pixels.
        padding: what is seen beyond the border: the 'border' itself, or 'zeros' (black).
        smoothness: 0.0025, times the roughness over the bound, is the published 0.05 at a bound of 0.05.
    """

    name: Literal["spatial"] = "spatial"
    bound: float = Field(0.05, ge=0)
    unit: FlowUnit = "grid"
    padding: Padding = "border"

    @property
    def limits(self) -> dict[str, float]:
        return {"flow": self.bound}

    def space(self, images: Images) -> FieldSpace:
        return FlowSpace(images, self.unit, self.padding)

    @property
    def summary(self) -> str:
        return f"{describe_flow(self.bound, self.unit)}; {self.padding} padding; {self.how}"

    @classmethod
    def paper(cls, bound: float = 0.05, steps: int = 100) -> "Spatial":
        """As in the tables of Laidlaw et al. 2021 (20 steps by default there, 100 or 200 in the tables): Adam's steps of 0.01, of
        which the last iterate counts, though more steps make it weaker, since the smoothness wins. Images may have any shape."""
        share = 0.01 / bound if bound else None
        return cls(
            bound=bound, steps=steps, step_size=share, keep="last", stop_when_fooled=False, padding="zeros"
        )

    @classmethod
    def strict(cls, bound: float = 0.05, unit: FlowUnit = "grid") -> WorstOf:
        """The worst per example over published and other optimisers, step sizes and numbers of steps."""
        return WorstOf(
            attacks=(
                cls(bound=bound, unit=unit, rule="sign", smoothness=0),
                cls(bound=bound, unit=unit),
                cls(bound=bound, unit=unit, steps=100, step_size=0.05, smoothness=0),
                cls(
                    bound=bound,
                    unit=unit,
                    steps=100,
                    rule="sign",
                    smoothness=0,
                    loss="task",
                    random_start=True,
                ),
            )
        )


def describe_flow(bound: float, unit: FlowUnit) -> str:
    """The bound in both units."""
    if unit == "px":
        return f"flow <= {bound:g} px ({bound / 14:.3g} grid units of 28 px, {bound / 112:.3g} of 224)"
    return f"flow <= {bound:g} grid units ({bound * 14:.3g} px of 28, {bound * 112:.3g} of 224)"
