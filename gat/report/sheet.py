"""A sheet of attacked examples to look at: one column per example, with what the model answered drawn onto it or below it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from gat.report.drawing import PIXEL_ART_PX, judged_boxes, paint
from gat.report.names import class_name

ENLARGEMENT = 3  # of pictures up to `PIXEL_ART_PX`
GAP_PX, GAP_COLOUR = 3, (128, 128, 128)

# As on the page (scenes.html): colour, and lengths of dash and gap in px.
_STROKES = {"found": ("#56b4e9", None), "wrong": ("#ffb000", (4, 3)), "missed": ("#ffffff", (10, 6))}


def picture(image: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    """Its pixels as squares where it is small."""
    drawn = Image.fromarray(image)
    scale = _scale(image)
    return drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.NEAREST)


def label_picture(label_map: UInt8[np.ndarray, "h w"], num_classes: int) -> Image.Image:
    """In the colours of the page, as large as the picture of its scene."""
    return picture(paint(label_map, num_classes))


def boxed_picture(
    image: UInt8[np.ndarray, "h w 3"],
    answers: Float32[np.ndarray, "d 6"],
    objects: Float32[np.ndarray, "m 6"],
    classes: tuple[str, ...],
    threshold: float,
    overlap: float,
) -> Image.Image:
    """With what a detector sees: found objects (blue), wrong answers (orange, dashed) and missed objects (white, long dashes).

    Args:
        answers: x0 y0 x1 y1 score class, in px of the image.
        objects: x0 y0 x1 y1 class crowd; crowds are not drawn.
        threshold, overlap: score and IoU from which on an answer counts.
    """
    drawn, scale = picture(image), _scale(image)
    boxes = judged_boxes(answers, objects, threshold, overlap)
    boxes.sort(key=lambda seen: ("missed", "wrong", "found").index(seen.kind))  # the last ones lie on top
    draw = ImageDraw.Draw(drawn, "RGBA")
    corners = []
    for seen in boxes:
        place = [round(scale * side) for side in seen.box]
        _outline(draw, place, seen.kind)
        if seen.kind != "missed":
            corners.append((place[0], place[1], class_name(seen.label, classes)))
    _write_names(draw, corners[::-1])  # those of found objects first
    return drawn


def sheet(columns: Sequence[Sequence[Image.Image]], per_band: int = 10) -> Image.Image:
    """Columns of pictures of one size side by side, in as many bands as it takes."""
    width, height = columns[0][0].width + GAP_PX, columns[0][0].height + GAP_PX
    rows, across = len(columns[0]), min(len(columns), per_band)
    bands = -(-len(columns) // per_band)
    band_height = rows * height + GAP_PX
    whole = Image.new("RGB", (across * width + GAP_PX, bands * band_height), GAP_COLOUR)
    for i, column in enumerate(columns):
        band, place = divmod(i, per_band)
        for row, part in enumerate(column):
            whole.paste(part, (GAP_PX + place * width, GAP_PX + band * band_height + row * height))
    return whole


def _scale(image: UInt8[np.ndarray, "h w 3"]) -> int:
    return ENLARGEMENT if max(image.shape[:2]) <= PIXEL_ART_PX else 1


def _outline(draw: ImageDraw.ImageDraw, box: Sequence[int], kind: str) -> None:
    colour, dashes = _STROKES[kind]
    x0, y0, x1, y1 = box
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0, 110), width=4)  # for bright grounds
    for a, b in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x0, y1), (x1, y1)), ((x0, y0), (x0, y1))):
        for start, end in _dashes(a, b, dashes):
            draw.line((start, end), fill=colour, width=2)


def _write_names(draw: ImageDraw.ImageDraw, names: Sequence[tuple[int, int, str]]) -> None:
    """Names at corners; of those that would lie on each other only the first."""
    taken: list[tuple[float, float, float, float]] = []
    font = ImageFont.load_default(11)
    for x, y, name in names:
        place = draw.textbbox((x + 4, y + 2), name, font=font, stroke_width=1)
        if not any(
            place[0] < b[2] and b[0] < place[2] and place[1] < b[3] and b[1] < place[3] for b in taken
        ):
            taken.append(place)
            draw.text((x + 4, y + 2), name, "#ffffff", font, stroke_width=1, stroke_fill="#000000")


def _dashes(
    a: tuple[int, int], b: tuple[int, int], lengths: tuple[int, int] | None
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The drawn parts of a line."""
    if lengths is None:
        return [(a, b)]
    length = max(abs(b[0] - a[0]), abs(b[1] - a[1]))
    starts = np.arange(0, max(length, 1), sum(lengths))

    def at(distance: float) -> tuple[float, float]:
        share = min(distance / max(length, 1), 1.0)
        return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])

    return [(at(start), at(start + lengths[0])) for start in starts.tolist()]
