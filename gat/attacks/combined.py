"""Recolouring, bending and adding at once (Laidlaw & Feizi 2019, Sec. 5)."""

from typing import Literal

from pydantic import Field

from gat.attacks.fields import FieldAttack, FieldSpace
from gat.attacks.recolor import describe_colors
from gat.attacks.spatial import describe_flow
from gat.attacks.worst import WorstOf
from gat.latents import Images
from gat.spaces.combined import CombinedSpace
from gat.spaces.flow import FlowUnit, Padding

Part = Literal["recolor", "spatial", "additive"]
_SITES: dict[Part, str] = {"recolor": "color", "spatial": "flow", "additive": "delta"}


class Combined(FieldAttack):
    """`Recolor`, then `Spatial`, then an addition bounded in linf, all ascending together.

    Attributes:
        parts: which of the three move.
        color_bound, channels, grid: see `Recolor`.
        flow_bound, unit, padding: see `Spatial`.
        delta_bound: largest addition, for images in [0, 1].
    """

    name: Literal["combined"] = "combined"
    parts: tuple[Part, ...] = Field(("recolor", "spatial", "additive"), min_length=1)
    color_bound: float = Field(0.06, ge=0)
    flow_bound: float = Field(0.05, ge=0)
    delta_bound: float = Field(8 / 255, ge=0)
    channels: tuple[float, float, float] = (1.0, 1.0, 1.0)
    grid: tuple[int, int, int] = (16, 32, 32)
    unit: FlowUnit = "grid"
    padding: Padding = "border"

    @property
    def limits(self) -> dict[str, float]:
        every = {"color": self.color_bound, "flow": self.flow_bound, "delta": self.delta_bound}
        moved = {_SITES[part] for part in self.parts}
        return {site: limit for site, limit in every.items() if site in moved}

    def space(self, images: Images) -> FieldSpace:
        return CombinedSpace(images, self.grid, self.channels, self.unit, self.padding)

    @property
    def summary(self) -> str:
        said = {
            "recolor": describe_colors(self.color_bound, self.channels),
            "spatial": describe_flow(self.flow_bound, self.unit),
            "additive": f"addition <= {self.delta_bound * 255:g}/255",
        }
        return f"{' + '.join(said[part] for part in _SITES if part in self.parts)}; {self.how}"

    @classmethod
    def paper(cls, steps: int = 100) -> "Combined":
        """As published: Adam, of which the last iterate counts. There every site takes steps of 0.001 and both roughnesses weigh
        0.05; here steps are a fiftieth of each bound (0.0012, 0.001, 0.0006) and the weights 0.042 and 0.05. See `Recolor.paper`."""
        return cls(steps=steps, step_size=0.02, keep="last", stop_when_fooled=False, padding="zeros")

    @classmethod
    def strict(cls) -> WorstOf:
        """The worst per example over published and other optimisers, step sizes and numbers of steps."""
        return WorstOf(
            attacks=(
                cls(rule="sign", smoothness=0),
                cls(),
                cls(steps=100, step_size=0.02, smoothness=0),
                cls(steps=100, rule="sign", smoothness=0, loss="task", random_start=True),
            )
        )
