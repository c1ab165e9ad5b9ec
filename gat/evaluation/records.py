"""One record per example, model and attack: the only thing tables, curves and pages are made from.

Names of attacks are `attack`, `attack-variant` or `attack@0.5` (the same at half its budget). A variant that is one of
`CONTROLS` is run to doubt the attack it is named after, not to judge models.

A run folder, or the folder of an evaluation of several runs, holds

    config.yaml              the resolved configuration, itself a valid --config
    provenance.json          versions, git commit, seeds, devices, hashes of weights
    training/*/metrics.jsonl training curves: one row per report, with `stage` and `step`
    records.jsonl            the records below
    probes.json              what was asked of the models themselves (see gat.evaluation.probe)
    metrics.json             of scenes: numbers of whole data sets (see gat.evaluation.metrics)
    gallery.json, gallery.npz   pictures (see gat.report.gallery)
    report.html, report.json, report.md, figures/, tables/
"""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gat.files import written_whole

CONTROLS = {
    "start": "the pictures that the attack starts from, as they are",
    "random": "the same change, drawn at random instead of optimised",
    "long": "the same attack with several times the steps",
    "unbounded": "the same attack without a bound, which nothing should survive",
    "blackbox": "an attack within the same bound that sees no gradient",
    "transfer": "the images that the attack made for the other models",
}


def control(attack: str) -> str | None:
    """Which of `CONTROLS` an attack of this name is; None if it judges models itself."""
    base, dash, last = attack.rpartition("-")
    return last if dash and base and last in CONTROLS else None


def controlled(attack: str) -> str:
    """The attack that a control doubts."""
    return attack.rpartition("-")[0]


def at_budget(attack: str, factor: float) -> str:
    """Name of an attack at a multiple of its budget."""
    return f"{attack}@{factor:g}"


def budget(attack: str) -> tuple[str, float]:
    """The attack and the multiple of its budget that `at_budget` wrote; 1 for a plain name."""
    base, at, factor = attack.rpartition("@")
    try:
        return (base, float(factor)) if at else (attack, 1.0)
    except ValueError:
        return attack, 1.0


@dataclass(frozen=True)
class Record:
    """What happened to one example.

    Attributes:
        model: which model, for example 'original' or 'gat'.
        attack: 'none' for clean images, else the attack's name, for example 'gat', 'gat-style-coarse' or 'pgd-linf'.
        protocol: id of the settings the attack ran under; two numbers compare only under the same id.
        source: where the starting image came from: 'real' or 'generated'.
        id: index of the example in its split, or of its random latents.
        label: true class.
        clean_prediction: on the starting image.
        prediction: on the attacked image (the starting image for attack 'none').
        success: the model was right on the starting image and is not on the attacked one (for a targeted attack: and answers the target).
        target: class aimed at, None if not targeted.
        iterations: gradient steps taken until success, or all of them; 0 if there was nothing to attack.
        loss: of the model on the attacked image, float32.
        distances: name -> value, for example {'linf_pixels': 0.03, 'l2_style': 1.2}.
        forwards, backwards: passes through the attacked model spent on this example.
        zero_gradients: steps at which the attack saw no gradient.
        oracle_clean, oracle: class the independent oracle reads on the starting and on the attacked image; None if none was asked.
        clean_score, score: of scenes: how good the answers to the two images are, from 0 to 1; see `gat.protocols.Task`.
        clean_oracle_score, oracle_score: of scenes: share of the two images' pixels on which the oracle, a segmenter, reads the class
            that the layout has there.
        clean_shown_score, shown_score: of scenes whose labels are pixels: the two scores among the pixels on which the oracle reads the
            label in both images, so those that the attack has not painted over; None if there are none.
        evidence: of scenes: what the task computes numbers of the whole data set from, for the attacked image.
        oracle_evidence: the same of what the oracle reads, where the labels are pixels.

    Scenes have no class: their `label` is 1, and a prediction is 1 where the task does not call the answer wrong, else 0.
    """

    model: str
    attack: str
    protocol: str
    source: str
    id: int
    label: int
    clean_prediction: int
    prediction: int
    success: bool
    iterations: int = 0
    loss: float = 0.0
    target: int | None = None
    distances: dict[str, float] = field(default_factory=dict)
    forwards: int = 0
    backwards: int = 0
    zero_gradients: int = 0
    oracle_clean: int | None = None
    oracle: int | None = None
    clean_score: float | None = None
    score: float | None = None
    clean_oracle_score: float | None = None
    oracle_score: float | None = None
    clean_shown_score: float | None = None
    shown_score: float | None = None
    evidence: Any = None
    oracle_evidence: Any = None

    @property
    def correct(self) -> bool:
        """Right on the attacked image, and right before: an attack cannot turn a wrong example right."""
        return self.prediction == self.label and self.clean_prediction == self.label

    @property
    def broken(self) -> bool:
        """Fooled by a picture that still shows its label to the oracle, which read the starting one right too."""
        return self.success and self.oracle_clean == self.label == self.oracle


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write all records, one JSON object per line without what is None, atomically."""
    with written_whole(path) as temporary, open(temporary, "w") as file:
        for record in records:
            file.write(_line(record))


def archive_records(path: Path, records: Iterable[tuple[int, Record]]) -> None:
    """What published tables are made from: the records of attacked images, each with its run's `seed`, gzipped, the same bytes for the
    same records, atomically. Clean images of whole test sets and distances, which no table reads, would be most of the file;
    losses keep 4 decimals."""
    with written_whole(path) as temporary, gzip.GzipFile(temporary, "wb", mtime=0) as file:
        for seed, record in records:
            if record.attack != "none":
                file.write(
                    _line(replace(record, distances={}, loss=round(record.loss, 4)), seed=seed).encode()
                )


def _line(record: Record, **more: int) -> str:
    return json.dumps(more | {k: v for k, v in vars(record).items() if v is not None}) + "\n"


def read_records(path: Path) -> list[Record]:
    """Read what `write_records` wrote.

    Raises:
        ValueError: naming the line that is not a record.
    """
    known = {field.name for field in fields(Record)}
    records = []
    with open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                records.append(Record(**row))
            except (json.JSONDecodeError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not a record ({error}); a record has {sorted(known)}"
                ) from error
    return records
