"""The strips of a run: scenes over the iterations of an attack, and what the attacked model answers to each (Fig. 5 of the paper).

`write_strips` puts two files into the run folder. `strips.npz` holds the arrays `images`, uint8 [n, h, w, 3], and `maps`, uint8
[m, h, w]: label maps, 255 for unlabelled pixels. `strips.json` says what each is:

    {"seed": 2, "task": "segmentation", "classes": ["shirt", ...],
     "strips": [{"model": "original", "attack": "gat", "settings": "both all; ...", "id": 17, "state": "fooled", "iterations": 4,
                 "threshold": null, "overlap": null, "truth": 0,
                 "frames": [{"iteration": 0, "score": 0.91, "image": 0, "answer": 1}, ...]}, ...]}

For detection, `truth` and `answer` are lists of boxes instead of places in `maps`.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from jaxtyping import Float32, UInt8

from gat.files import write_json, written_whole
from gat.report.gallery import Picture, to_uint8

STRIPS_JSON = "strips.json"
STRIPS_NPZ = "strips.npz"

SceneTask = Literal["segmentation", "detection"]
State = Literal["fooled", "held", "wrong before"]

LabelMap = UInt8[np.ndarray, "h w"]
"""Class of every pixel; 255 where it has none."""
Boxes = Float32[np.ndarray, "n 6"]
"""True objects: x0 y0 x1 y1 in px, class, crowd (0 or 1). Answers: x0 y0 x1 y1 in px, score, class. No padding."""


@dataclass(frozen=True)
class Frame:
    """One iterate.

    Attributes:
        iteration: gradient steps from the start; 0 is the start.
        image: the picture.
        answer: of the attacked model: a label map, or boxes.
        score: how good that answer is, from 0 to 1: pixel accuracy, or the share of the objects that is found.
    """

    iteration: int
    image: Picture
    answer: LabelMap | Boxes
    score: float


@dataclass(frozen=True)
class Strip:
    """One scene under one attack on one model.

    Attributes:
        model, attack: as in the records.
        settings: of the attack, in one line.
        id: of the scene.
        truth: the true label map, or the true objects.
        frames: by iteration; the first is the start.
        state: whether the attack fooled the model, did not, or had nothing to do.
        iterations: gradient steps until the model was fooled, or all that were taken.
        threshold, overlap: of detection: score and IoU from which on a box counts; None for segmentation.
    """

    model: str
    attack: str
    settings: str
    id: int
    truth: LabelMap | Boxes
    frames: tuple[Frame, ...]
    state: State
    iterations: int
    threshold: float | None = None
    overlap: float | None = None


@dataclass(frozen=True)
class Strips:
    """All strips, the names of the classes, and the seed that chose the scenes."""

    items: tuple[Strip, ...]
    task: SceneTask
    classes: tuple[str, ...]
    seed: int


def write_strips(
    run: Path, strips: Sequence[Strip], task: SceneTask, classes: Sequence[str], seed: int
) -> None:
    """Write the strips into the run folder, replacing older ones.

    Args:
        run: the folder; it must exist.
        strips: in the order in which they are shown. Choose the scenes by seed and keep failures.
        classes: their names, by label.
        seed: that chose the scenes; printed on the page.

    Raises:
        ValueError: if there is no strip, one has no frame, or pictures or maps differ in size.
    """
    images: list[UInt8[np.ndarray, "h w 3"]] = []
    maps: list[LabelMap] = []

    def answer(value: LabelMap | Boxes) -> int | list[list[float]]:
        if task == "detection":
            # 0.01 px and 0.0001 of a score are more than anyone sees.
            return [[round(number, 4) for number in row] for row in value.tolist()]
        maps.append(value)
        return len(maps) - 1

    rows = []
    for strip in strips:
        if not strip.frames:
            raise ValueError(
                f"a strip needs at least one frame, got none for scene {strip.id} of {strip.model}"
            )
        frames = []
        for frame in strip.frames:
            images.append(to_uint8(frame.image))
            frames.append(
                {
                    "iteration": frame.iteration,
                    "score": round(frame.score, 6),
                    "image": len(images) - 1,
                    "answer": answer(frame.answer),
                }
            )
        told = {name: value for name, value in vars(strip).items() if name not in {"truth", "frames"}}
        rows.append({**told, "truth": answer(strip.truth), "frames": frames})
    if not images:
        raise ValueError("strips need at least one scene, got none")
    sizes = sorted({part.shape[:2] for part in (*images, *maps)})
    if len(sizes) > 1:
        raise ValueError(
            f"all pictures and label maps of strips have one size, got {sizes[0]} and {sizes[1]}"
        )
    height, width = sizes[0]
    labels = np.stack(maps) if maps else np.zeros((0, height, width), np.uint8)
    content = {"seed": seed, "task": task, "classes": list(classes), "strips": rows}
    with written_whole(run / STRIPS_NPZ) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, images=np.stack(images), maps=labels)
    write_json(run / STRIPS_JSON, content)


def read_strips(run: Path) -> Strips:
    """Read what `write_strips` wrote; pictures come back as uint8.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if they are damaged or do not belong together.
    """
    images, maps = _read_arrays(run / STRIPS_NPZ)

    def place(index: Any, among: np.ndarray) -> np.ndarray:
        if not isinstance(index, int) or not 0 <= index < len(among):
            raise ValueError(f"number {index!r} of {len(among)} pictures or maps")
        return cast(np.ndarray, among[index])

    def answer(value: Any, task: str) -> LabelMap | Boxes:
        if task == "segmentation":
            return place(value, maps)
        return np.array(value, dtype=np.float32).reshape(len(value), 6)

    def strip(row: dict[str, Any], task: str) -> Strip:
        frames = tuple(
            Frame(
                _whole(frame["iteration"], "iteration"),
                place(frame["image"], images),
                answer(frame["answer"], task),
                float(frame["score"]),
            )
            for frame in row.pop("frames")
        )
        if not frames:
            raise ValueError("a strip without frames")
        if row["state"] not in get_args(State):
            raise ValueError(f"state should be one of {', '.join(get_args(State))}, got {row['state']!r}")
        for name in ("id", "iterations"):
            _whole(row[name], name)
        if task == "detection":
            for name in ("threshold", "overlap"):
                row[name] = float(row[name])
        return Strip(truth=answer(row.pop("truth"), task), frames=frames, **row)

    try:
        content = json.loads((run / STRIPS_JSON).read_text())
        task = content["task"]
        if task not in get_args(SceneTask):
            raise ValueError(f"task should be one of {', '.join(get_args(SceneTask))}, got {task!r}")
        items = tuple(strip(row, task) for row in content["strips"])
        return Strips(items, task, tuple(map(str, content["classes"])), _whole(content["seed"], "seed"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{run / STRIPS_JSON}: no strips, or not those of {STRIPS_NPZ} ({error})") from error


def _read_arrays(path: Path) -> tuple[UInt8[np.ndarray, "n h w 3"], UInt8[np.ndarray, "m h w"]]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            images, maps = archive["images"], archive["maps"]
    except (
        KeyError,
        TypeError,
        ValueError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path}: not an archive with arrays 'images' and 'maps' ({error})") from error
    for name, array, ndim in (("images", images, 4), ("maps", maps, 3)):
        if array.dtype != np.uint8 or array.ndim != ndim or (name == "images" and array.shape[-1] != 3):
            raise ValueError(
                f"{path}: '{name}' should be uint8 of {ndim} axes, got {array.dtype} {list(array.shape)}"
            )
    return images, maps


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} should be a whole number, got {value!r}")
    return value
