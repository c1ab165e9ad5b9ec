"""One model under one attack: from examples to records and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.data import default_collate

from gat.attacks import ImageAttack, LatentAttack, Outcome
from gat.attacks.frozen import frozen
from gat.attacks.pgd import PGD
from gat.evaluation.plan import Cell, EvaluationSettings, draws_classes
from gat.evaluation.records import Record, read_records
from gat.files import written_whole
from gat.latents import Images, PerExample
from gat.protocols import Examples, PartlyReadable
from gat.training.methods import Batch, Tools

Pictures = dict[str, Shaped[np.ndarray, "..."]]
"""'ids' and 'positions' [n], 'start' and 'images' [n, c, h, w], uint8 or float32."""


UNKNOWN = 255
"""Pixels of a semantic map that have no class."""


def attack_part(
    cell: Cell,
    model: nn.Module,
    part: Tensor,
    dataset: Examples,
    tools: Tools,
    settings: EvaluationSettings,
    device: torch.device,
) -> tuple[list[Record], Pictures]:
    """`_attack_chunk`, of no more examples at a time than the generator's memory budget allows."""
    limit = None
    if isinstance(cell.attack, LatentAttack) and tools.generator is not None:
        limit = cell.attack.max_width(tools.generator)
    chunks = [
        _attack_chunk(cell, model, chunk, dataset, tools, settings, device)
        for chunk in part.split(limit or len(part))
    ]
    records = [record for made, _ in chunks for record in made]
    pictures = [kept for _, kept in chunks if kept]
    return records, join_pictures(pictures, cell.keep) if pictures else {}


def _attack_chunk(
    cell: Cell,
    model: nn.Module,
    chunk: Tensor,
    dataset: Examples,
    tools: Tools,
    settings: EvaluationSettings,
    device: torch.device,
) -> tuple[list[Record], Pictures]:
    """Records of these examples, and the images of those that are kept ({} for none)."""
    compute = replace(tools.compute, width=settings.width)
    if cell.sources:
        return _transferred(cell, model, chunk, tools, settings, device), {}
    attack = cell.attack
    invented = draws_classes(attack, tools)
    batch = {} if invented else default_collate([dataset[int(i)] for i in chunk])
    ids = chunk if invented else batch["ids"]
    layouts = batch["layouts"].to(device) if "layouts" in batch else None
    if attack is not None and not isinstance(attack, ImageAttack):
        space, source = tools.generator, "generated"
        assert space is not None
        labels = (chunk % len(space.classes) if invented else batch["labels"]).to(device)
        conditions = labels if invented else Batch(batch["images"], labels, layouts).conditions(space)
        latents = space.sample(conditions, ids, settings.seed)
        outcome = attack.run(tools.task, model, space, latents, labels, compute=compute, ids=ids)
    else:
        images, labels, source = batch["images"].to(device), batch["labels"].to(device), "real"
        # Clean accuracy is the attack that takes no step.
        attack = attack or PGD(eps=0, steps=0, random_start=False)
        outcome = attack.run(tools.task, model, images, labels, compute=compute, ids=ids)
    kept = torch.isin(chunk, cell.keep).nonzero().squeeze(1)
    pictures: Pictures = {}
    if len(kept):
        shown = {"start": outcome.start_images, "images": outcome.images}
        pictures = {name: _portable(value[kept.to(device)], cell.exact) for name, value in shown.items()}
        pictures |= {"ids": ids[kept].numpy(), "positions": chunk[kept].numpy()}
    about = (cell, source, ids.tolist(), labels, outcome, tools, settings.width)
    return list(_records(*about) if layouts is None else _scene_records(*about, layouts)), pictures


def _transferred(
    cell: Cell,
    model: nn.Module,
    chunk: Tensor,
    tools: Tools,
    settings: EvaluationSettings,
    device: torch.device,
) -> list[Record]:
    """How this model answers the images made for the others: the first of those that fools it, if one does."""
    answers: dict[int, Record] = {}
    for source in cell.sources:
        pictures, records = read_pictures(source.pictures), {r.id: r for r in read_records(source.path)}
        rows = np.flatnonzero(np.isin(pictures["positions"], chunk.numpy()))
        start, images = (torch.from_numpy(pictures[name][rows]).to(device) for name in ("start", "images"))
        with torch.no_grad(), frozen(model):
            before, after = (
                torch.cat(
                    [tools.task.predict(model(part).float()) for part in all_.split(settings.width)]
                ).tolist()
                for all_ in (start, images)
            )
        for example, clean, answer in zip(pictures["ids"][rows].tolist(), before, after, strict=True):
            made = records[example]
            earlier = answers.get(example)
            if earlier is not None and earlier.success:
                continue
            success = clean == made.label != answer
            answers[example] = replace(
                made, model=cell.model, attack=cell.name, clean_prediction=clean, prediction=answer, success=success,
                iterations=0, loss=0.0, forwards=2 + 2 * len(cell.sources), backwards=0, zero_gradients=0,
            )  # fmt: skip
    return list(answers.values())


def read_labels(oracle: nn.Module | None, images: Tensor, width: int) -> list[int] | None:
    """What the oracle sees, per image; None without an oracle."""
    return None if oracle is None else outputs(oracle, images, width).argmax(1).tolist()


@torch.no_grad()
def outputs(network: nn.Module, images: Images, width: int) -> Tensor:
    """Of a network in evaluation mode, `width` images at a time."""
    with frozen(network):
        return torch.cat([network(part) for part in images.split(width)])


def _records(
    cell: Cell, source: str, ids: Sequence[int], labels: Tensor, outcome: Outcome, tools: Tools, width: int
) -> Iterator[Record]:
    oracle_clean = read_labels(tools.oracle, outcome.start_images, width)
    oracle = oracle_clean if cell.attack is None else read_labels(tools.oracle, outcome.images, width)
    aimed = cell.attack is not None and cell.attack.goal == "targeted"
    nobody = [None] * len(ids)
    columns: dict[str, list[Any]] = {
        "label": labels.tolist(),
        "clean_prediction": outcome.clean_predictions.tolist(),
        "prediction": outcome.predictions.tolist(),
        "oracle_clean": oracle_clean or nobody,
        "oracle": oracle or nobody,
        "target": outcome.targets.tolist() if aimed and outcome.targets is not None else nobody,
    }
    return _rows(cell, source, ids, outcome, columns)


def _scene_records(
    cell: Cell,
    source: str,
    ids: Sequence[int],
    labels: Tensor,
    outcome: Outcome,
    tools: Tools,
    width: int,
    layouts: Tensor,
) -> Iterator[Record]:
    """Scenes have no class to be right about: their records hold scores, and the evidence for numbers of the whole data set."""
    task = tools.task
    scores = [task.score(answers, labels) for answers in (outcome.clean_predictions, outcome.predictions)]
    columns: dict[str, list[Any]] = {
        "label": [1] * len(ids),
        "clean_prediction": outcome.attacked.long().tolist(),
        "prediction": (outcome.attacked & ~outcome.success).long().tolist(),
        "clean_score": scores[0].tolist(),
        "score": scores[1].tolist(),
        "evidence": task.evidence(outcome.predictions, labels),
    }
    if tools.oracle is not None:
        shown = labels
        for name, images in (("clean_oracle_score", outcome.start_images), ("oracle_score", outcome.images)):
            reading = outputs(tools.oracle, images, width)
            columns[name] = layout_agreement(reading, layouts).tolist()
            if isinstance(task, PartlyReadable):
                shown = task.only_read(reading, shown)
        if isinstance(task, PartlyReadable):
            # The reading is that of the attacked images. Evidence is empty where nothing is left to be right about.
            columns["oracle_evidence"] = task.evidence(task.predict(reading), labels)
            left = task.evidence(outcome.predictions, shown)
            answered = {"clean_shown_score": outcome.clean_predictions, "shown_score": outcome.predictions}
            for name, answers in answered.items():
                found = zip(task.score(answers, shown).tolist(), left, strict=True)
                columns[name] = [score if some else None for score, some in found]
    return _rows(cell, source, ids, outcome, columns)


def _rows(
    cell: Cell, source: str, ids: Sequence[int], outcome: Outcome, columns: dict[str, list[Any]]
) -> Iterator[Record]:
    """A record per example: `columns`, and what came of the attack whatever the task."""
    whole = columns | {
        name: getattr(outcome, name).tolist()
        for name in ("success", "iterations", "loss", "forwards", "backwards", "zero_gradients")
    }
    distances = {name: value.tolist() for name, value in outcome.distances.items()}
    for i, example in enumerate(ids):
        yield Record(
            model=cell.model,
            attack=cell.name,
            protocol=cell.protocol,
            source=source,
            id=example,
            distances={name: values[i] for name, values in distances.items()},
            **{name: values[i] for name, values in whole.items()},
        )


def layout_agreement(reading: Float[Tensor, "b k h w"], layouts: Tensor) -> PerExample:
    """Share of each image's pixels on which a segmenter reads the class that the layout has there; unknown ones are left out.

    Args:
        reading: the segmenter's logits.
        layouts: [b, 2, h, w]; 255 in the semantic map is unknown.
    """
    wanted = layouts[:, 0]
    known = wanted != UNKNOWN
    return ((reading.argmax(1) == wanted) & known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)


def _portable(images: Tensor, exact: bool) -> Shaped[np.ndarray, "n c h w"]:
    images = images.detach().float().contiguous()
    return (images if exact else (images.clamp(0, 1) * 255).round().to(torch.uint8)).cpu().numpy()


def join_pictures(parts: Sequence[Pictures], keep: Tensor) -> Pictures:
    """Of all parts, in the order of `keep`."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rank = {position: i for i, position in enumerate(keep.tolist())}
    order = np.argsort([rank[position] for position in joined["positions"].tolist()])
    return {name: value[order] for name, value in joined.items()}


def read_pictures(path: Path) -> Pictures:
    """What an evaluation kept of a cell."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def write_pictures(path: Path, pictures: Pictures) -> None:
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **pictures)  # type: ignore[arg-type]
