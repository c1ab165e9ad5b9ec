"""The pictures of a gallery as the page shows them: cards of a starting image and what attacks made of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gat.report.drawing import PIXEL_ART_PX, data_uri
from gat.report.finding import compared_model
from gat.report.gallery import Gallery, GalleryItem, Panel, difference, difference_factors, to_uint8
from gat.report.names import (
    GROUPS,
    PANELS,
    class_name,
    group_name,
    model_name,
    panel_name,
)
from gat.report.statistics import (
    Column,
    Key,
    models,
)

_STRIPS_OPEN = 2  # models whose pictures of one attack are shown; the others are one click away
_CARDS_OPEN = 6  # per model and layer group; the others are one click away


def gallery_view(gallery: Gallery, classes: tuple[str, ...]) -> dict[str, Any]:
    """What the template shows: layer groups, in each the models, in each the cards."""
    factors = difference_factors(gallery)
    order = list(GROUPS)
    groups = sorted(
        dict.fromkeys(item.group for item in gallery.items),
        key=lambda group: order.index(group) if group in order else len(order),
    )
    height, width, _ = to_uint8(gallery.items[0].original).shape if gallery.items else (1, 1, 3)
    return {
        "factors": ", ".join(f"{_inline(kind)} ×{factor}" for kind, factor in factors.items()),
        "seed": gallery.seed,
        "oracle": any(panel.oracle is not None for item in gallery.items for panel in item.panels),
        "pixel_art": max(height, width) <= PIXEL_ART_PX,
        "size": f"{width}×{height}",
        "groups": [
            {
                "name": group_name(group),
                "shown": _STRIPS_OPEN,
                "models": [
                    _strip(
                        model,
                        [i for i in gallery.items if (i.group, i.model) == (group, model)],
                        classes,
                        factors,
                    )
                    for model in _shown_first(i.model for i in gallery.items if i.group == group)
                ],
            }
            for group in groups
        ],
    }


def _shown_first(names: Iterable[str]) -> list[str]:
    """The baseline, the model the page is about, then the others."""
    ordered = models(Key(name, Column("", "", "")) for name in names)
    about = compared_model(ordered)
    return sorted(ordered, key=lambda name: (name != ordered[0], name != about))


def _inline(kind: str) -> str:
    """Of a panel, inside a sentence: 'style-based', but 'PGD'."""
    name = panel_name(kind)
    return name.lower() if kind in PANELS else name


def _strip(
    model: str, items: Sequence[GalleryItem], classes: tuple[str, ...], factors: Mapping[str, int]
) -> dict[str, Any]:
    panels = [panel for item in items for panel in item.panels]
    counts = []
    for kind in dict.fromkeys(panel.kind for panel in panels):
        verdicts = [panel.success for panel in panels if panel.kind == kind]
        counts.append(f"{_inline(kind)} {sum(verdicts)} of {len(verdicts)}")
    cards = [_card(item, classes, factors) for item in items]
    return {
        "name": model_name(model),
        "counts": "fooled: " + ", ".join(counts) if counts else "",
        "panels": 1 + max((len(item.panels) for item in items), default=0),
        "open": cards[:_CARDS_OPEN],
        "more": cards[_CARDS_OPEN:],
    }


def _card(item: GalleryItem, classes: tuple[str, ...], factors: Mapping[str, int]) -> dict[str, Any]:
    label, original = class_name(item.label, classes), to_uint8(item.original)

    def oracle(reading: int | None) -> dict[str, Any] | None:
        return (
            None
            if reading is None
            else {"name": class_name(reading, classes), "agrees": reading == item.label}
        )

    def attacked(panel: Panel) -> dict[str, Any]:
        answer, image = class_name(panel.prediction, classes), to_uint8(panel.image)
        steps = f"{panel.iterations} step{'' if panel.iterations == 1 else 's'}"
        state = "fooled" if panel.success else "held" if item.prediction == item.label else "wrong before"
        name = panel_name(panel.kind)
        return {
            "name": name,
            "image": data_uri(image),
            "alt": f"{name} version of a {label}; the model answers {answer}, {state} after {steps}",
            "difference": data_uri(difference(original, image, factors[panel.kind])),
            "factor": factors[panel.kind],
            "answer": answer,
            "state": state,
            "steps": steps,
            "oracle": oracle(panel.oracle),
        }

    return {
        "label": label,
        "id": item.id,
        "image": data_uri(original),
        "alt": f"Original {label}; the model answers {class_name(item.prediction, classes)}",
        "answer": class_name(item.prediction, classes),
        "right": item.prediction == item.label,
        "oracle": oracle(item.oracle),
        "panels": [attacked(panel) for panel in item.panels],
    }
