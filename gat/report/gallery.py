"""The pictures of a run: starting images and what attacks made of them.

`write_gallery` puts two files into the run folder. `gallery.npz` holds one array, `images`, uint8 [n, h, w, 3].
`gallery.json` says what each picture is:

    {"seed": 0, "classes": ["T-shirt/top", ...],
     "items": [{"model": "original", "group": "coarse", "id": 17, "label": 3, "prediction": 3, "oracle": 3, "image": 0,
                "panels": [{"kind": "noise", "prediction": 4, "success": true, "iterations": 2, "oracle": 3, "image": 1},
                           {"kind": "style", ...}]}, ...]}

Differences are not stored but computed when the page is made.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from gat.files import write_json, written_whole

JSON_NAME = "gallery.json"
NPZ_NAME = "gallery.npz"

Picture = Float[Tensor, "3 h w"] | Float[np.ndarray, "3 h w"] | UInt8[np.ndarray, "h w 3"]
"""RGB in [0, 1], channels first; what `read_gallery` returns is uint8, channels last."""


@dataclass(frozen=True)
class Panel:
    """One attacked picture.

    Attributes:
        kind: what was moved: 'noise', 'style', 'both', 'pixels', ...
        image: the picture.
        prediction: class the attacked model answers.
        success: whether that fooled the model (it was right before and is not now).
        iterations: gradient steps taken until then, or all of them.
        oracle: class the independent oracle reads; None if none was asked.
    """

    kind: str
    image: Picture
    prediction: int
    success: bool
    iterations: int
    oracle: int | None = None


@dataclass(frozen=True)
class GalleryItem:
    """One starting picture and what became of it: a card on the page.

    Attributes:
        model: whose classifier was attacked, as in the records.
        group: of layers that were moved: 'coarse', 'middle', 'fine', 'all'; any other name will do.
        id: of the example.
        label: its class.
        original: the starting picture.
        prediction: the model's answer on it.
        panels: the attacked pictures, in the order in which they are shown.
        oracle: class the independent oracle reads on the starting picture.
    """

    model: str
    group: str
    id: int
    label: int
    original: Picture
    prediction: int
    panels: tuple[Panel, ...]
    oracle: int | None = None


@dataclass(frozen=True)
class Gallery:
    """All items, the names of the classes, and the seed that chose the examples."""

    items: tuple[GalleryItem, ...]
    classes: tuple[str, ...]
    seed: int


def to_uint8(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """Channels last, 0 to 255, rounded to nearest.

    Raises:
        ValueError: if a value lies outside [0, 1] or is not finite.
    """
    array = picture.detach().cpu().float().numpy() if isinstance(picture, Tensor) else picture
    if array.dtype == np.uint8:
        return array
    # Written so that NaN fails too.
    if not (array.min() >= -1e-4 and array.max() <= 1 + 1e-4):
        raise ValueError(f"a picture needs values in [0, 1], got {array.min():.4g} to {array.max():.4g}")
    return np.rint(array.clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)


def write_gallery(run: Path, items: Sequence[GalleryItem], classes: Sequence[str], seed: int) -> None:
    """Write the pictures into the run folder, replacing older ones.

    Args:
        run: the folder; it must exist.
        items: in the order in which they are shown. Choose the examples by seed and keep failures.
        classes: their names, by label.
        seed: that chose the examples; printed on the page.

    Raises:
        ValueError: if there is no item, pictures differ in size, or values leave [0, 1].
    """
    pictures: list[UInt8[np.ndarray, "h w 3"]] = []

    def add(picture: Picture) -> int:
        pictures.append(to_uint8(picture))
        if pictures[-1].shape != pictures[0].shape:
            raise ValueError(
                f"all pictures of a gallery have one size, got {pictures[0].shape[:2]} and {pictures[-1].shape[:2]}"
            )
        return len(pictures) - 1

    def row(part: GalleryItem | Panel, picture: Picture) -> dict[str, Any]:
        values = {
            name: value for name, value in vars(part).items() if name not in {"original", "image", "panels"}
        }
        return {**values, "image": add(picture)}

    rows = []
    for item in items:
        rows.append(
            {**row(item, item.original), "panels": [row(panel, panel.image) for panel in item.panels]}
        )
    if not pictures:
        raise ValueError("a gallery needs at least one item, got none")
    with written_whole(run / NPZ_NAME) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, images=np.stack(pictures))
    write_json(run / JSON_NAME, {"seed": seed, "classes": list(classes), "items": rows})


def read_gallery(run: Path) -> Gallery:
    """Read what `write_gallery` wrote; pictures come back as uint8.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if they are damaged or do not belong together.
    """
    try:
        with open(run / NPZ_NAME, "rb") as file, np.load(file, allow_pickle=False) as archive:
            images = archive["images"]
    except (
        KeyError,
        TypeError,
        ValueError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{run / NPZ_NAME}: not an archive with an array 'images' ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"{run / NPZ_NAME}: 'images' should be uint8 [n, h, w, 3], got {images.dtype} {list(images.shape)}"
        )

    def picture(row: dict[str, Any]) -> UInt8[np.ndarray, "h w 3"]:
        index = row.pop("image")
        for name in {"id", "label", "prediction", "iterations", "oracle"} & row.keys():
            if not isinstance(row[name], int) and not (name == "oracle" and row[name] is None):
                raise ValueError(f"{name} should be a whole number, got {row[name]!r}")
        if not 0 <= index < len(images):
            raise ValueError(f"picture {index} of {len(images)}")
        return cast(np.ndarray, images[index])

    try:
        content = json.loads((run / JSON_NAME).read_text())
        items = []
        for row in content["items"]:
            panels = tuple(Panel(image=picture(panel), **panel) for panel in row.pop("panels"))
            items.append(GalleryItem(original=picture(row), panels=panels, **row))
        return Gallery(tuple(items), tuple(content["classes"]), content["seed"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{run / JSON_NAME}: not a gallery, or not the one of {NPZ_NAME} ({error})"
        ) from error


def difference(
    first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"], factor: int
) -> UInt8[np.ndarray, "h w 3"]:
    """`factor` times the absolute difference, cut off at 255; black where nothing changed."""
    change = np.abs(first.astype(np.int32) - second.astype(np.int32))
    return np.minimum(change * factor, 255).astype(np.uint8)


def difference_factors(gallery: Gallery) -> dict[str, int]:
    """Amplification of differences by kind of panel, one for the whole page: the largest power of two, up to 32, that cuts off at
    most 5 % of the values that changed."""
    changes: dict[str, list[UInt8[np.ndarray, " n"]]] = {}
    for item in gallery.items:
        for panel in item.panels:
            change = difference(to_uint8(item.original), to_uint8(panel.image), 1)
            changes.setdefault(panel.kind, []).append(change[change > 0])
    return {kind: amplification(np.concatenate(parts)) for kind, parts in changes.items()}


def amplification(changed: UInt8[np.ndarray, " n"]) -> int:
    """The largest power of two, up to 32, that takes at most 5 % of these changes, those that are not zero, beyond 255."""
    largest = float(np.percentile(changed, 95)) if changed.size else 255.0
    return max(2**power for power in range(6) if largest * 2**power <= 255)
