"""Pictures for the page: label maps in a fixed palette that colour-blind readers can use too, which boxes hit an object, and PNGs
that lie inside the page."""

import base64
import io
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

PIXEL_ART_PX = 96
"""Up to this size of a picture, pixels are shown as squares."""
_MOST_PX = 256  # larger pictures are shrunk, so that the page can still be mailed

UNLABELLED = 255
"""In a label map: a pixel without a class."""
UNLABELLED_COLOUR = (0, 0, 0)

# The seven colours of Okabe and Ito, 2008, "Color Universal Design", less black; the next ones are chosen in `palette`.
_OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

# Full loss of one kind of cone, on linear RGB: Machado, Oliveira and Fernandes, 2009, severity 1.0.
_DICHROMATS = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}  # fmt: skip
_TO_CONES = ((0.4122214708, 0.5363325363, 0.0514459929), (0.2119034982, 0.6806995451, 0.1073969566),
             (0.0883024619, 0.2817188376, 0.6299787005))  # fmt: skip
_TO_OKLAB = ((0.2104542553, 0.7936177850, -0.0040720468), (1.9779984951, -2.4285922050, 0.4505937099),
             (0.0259040371, 0.7827717662, -0.8086757660))  # fmt: skip

_LIGHTNESS = (
    0.30,
    0.96,
)  # of palette colours in Oklab: neither the black of unlabelled pixels nor the page's paper
_GRID = 18  # candidates per channel


def oklab(colours: UInt8[np.ndarray, "n 3"], vision: str = "normal") -> Float[np.ndarray, "n 3"]:
    """Lightness and two opponent colours (B. Ottosson, 2020), in which equal distances look about equally large.

    Args:
        colours: sRGB.
        vision: 'normal', 'protanopia', 'deuteranopia' or 'tritanopia'.
    """
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    if vision != "normal":
        linear = (linear @ np.array(_DICHROMATS[vision]).T).clip(0, 1)
    return np.asarray(np.cbrt(linear @ np.array(_TO_CONES).T) @ np.array(_TO_OKLAB).T)


def _seen(colours: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "v n 3"]:
    """In Oklab, by everyone."""
    return np.stack([oklab(colours, vision) for vision in ("normal", *_DICHROMATS)])


@cache
def _table(size: int) -> UInt8[np.ndarray, "n 3"]:
    steps = np.rint(np.linspace(0, 255, _GRID)).astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness = oklab(candidates)[:, 0]
    candidates = candidates[(lightness >= _LIGHTNESS[0]) & (lightness <= _LIGHTNESS[1])]
    looks = _seen(candidates)
    chosen = list(_OKABE_ITO)
    # What a colour must stay away from: all that were chosen, and unlabelled pixels.
    taken = _seen(np.array([*chosen, UNLABELLED_COLOUR], np.uint8))
    distance = np.linalg.norm(looks[:, :, None] - taken[:, None], axis=-1).min((0, 2))
    while len(chosen) < size:
        best = int(distance.argmax())
        chosen.append(tuple(candidates[best].tolist()))
        distance = np.minimum(distance, np.linalg.norm(looks - looks[:, best : best + 1], axis=-1).min(0))
    return np.array(chosen[:size], np.uint8)


def palette(size: int) -> UInt8[np.ndarray, "n 3"]:
    """sRGB colours of classes 0, 1, ...: always the same, and the first ones the same for any `size`.

    The colours of Okabe and Ito, then one by one the colour that lies farthest from all before it, after Glasbey et al., 2007,
    "Colour displays for categorical images", but with distances in Oklab, each the smallest over normal vision and the three
    kinds of dichromats.
    """
    return _table(size)


def paint(label_map: UInt8[np.ndarray, "h w"], num_classes: int) -> UInt8[np.ndarray, "h w 3"]:
    """A label map in the colours of `palette`; black where there is no class."""
    colours = np.tile(np.array(UNLABELLED_COLOUR, np.uint8), (256, 1))
    colours[:num_classes] = palette(num_classes)[:UNLABELLED]
    return colours[label_map]


class Hits(NamedTuple):
    """Which answers and which objects belong together.

    Attributes:
        right: answers that are the best one for an object.
        ignored: answers that are neither right nor wrong, because they lie in a crowd of their class.
        found: objects that some answer fits; crowds count as found.
    """

    right: Bool[np.ndarray, " d"]
    ignored: Bool[np.ndarray, " d"]
    found: Bool[np.ndarray, " m"]


def match(
    answers: Float32[np.ndarray, "d 6"], objects: Float32[np.ndarray, "m 6"], threshold: float, overlap: float
) -> Hits:
    """Answers against true objects. An answer fits an object of its class where its score is at least `threshold` and their
    IoU at least `overlap`; by falling score each answer takes the free object it overlaps most, and further answers to the
    same object are wrong, as COCO counts.

    Args:
        answers: x0 y0 x1 y1 score class.
        objects: x0 y0 x1 y1 class crowd.
    """
    shared, areas, places = _shared_areas(answers[:, :4], objects[:, :4])
    crowd = objects[:, 5] > 0
    union = np.where(crowd, areas[:, None], areas[:, None] + places - shared)
    met = shared / np.maximum(union, 1e-9)
    fits = (met >= overlap) & (answers[:, 5:6] == objects[:, 4]) & (answers[:, 4:5] >= threshold)
    right, free = np.zeros(len(answers), bool), ~crowd
    for i in np.argsort(-answers[:, 4], kind="stable"):
        open_to = np.where(fits[i] & free, met[i], -1.0)
        if open_to.max(initial=-1.0) >= 0:
            right[i], free[int(open_to.argmax())] = True, False
    return Hits(right, ~right & (fits & crowd).any(1), fits.any(0) | crowd)


class JudgedBox(NamedTuple):
    """A box to draw.

    Attributes:
        box: x0 y0 x1 y1.
        kind: 'missed' object, or answer that is 'found' or 'wrong'.
        label: class of the object or answer.
        score: of an answer; None for an object.
    """

    box: tuple[float, float, float, float]
    kind: str
    label: int
    score: float | None


def judged_boxes(
    answers: Float32[np.ndarray, "d 6"], objects: Float32[np.ndarray, "m 6"], threshold: float, overlap: float
) -> list[JudgedBox]:
    """What there is to see of a detector's answers: missed objects, then the answers that count, in their order. See `match`."""
    hits = match(answers, objects, threshold, overlap)
    boxes = [
        JudgedBox((x0, y0, x1, y1), "missed", int(label), None)
        for (x0, y0, x1, y1, label, _), found in zip(objects.tolist(), hits.found.tolist(), strict=True)
        if not found
    ]
    for i, (x0, y0, x1, y1, score, label) in enumerate(answers.tolist()):
        if score >= threshold and not hits.ignored[i]:
            kind = "found" if hits.right[i] else "wrong"
            boxes.append(JudgedBox((x0, y0, x1, y1), kind, int(label), score))
    return boxes


def _shared_areas(
    first: Float32[np.ndarray, "d 4"], second: Float32[np.ndarray, "m 4"]
) -> tuple[Float[np.ndarray, "d m"], Float[np.ndarray, " d"], Float[np.ndarray, " m"]]:
    """Intersections, and the areas of both."""

    def area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        sides = (high - low).clip(min=0)
        return np.asarray(sides[..., 0] * sides[..., 1], np.float64)

    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return area(low, high), area(first[:, :2], first[:, 2:]), area(second[:, :2], second[:, 2:])


def data_uri(picture: UInt8[np.ndarray, "h w 3"], classes: bool = False) -> str:
    """A PNG inside a text, shrunk if it is large.

    Args:
        classes: colours stand for classes, so none may be mixed from two.
    """
    image = Image.fromarray(picture)
    image.thumbnail((_MOST_PX, _MOST_PX), Image.Resampling.NEAREST if classes else Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
