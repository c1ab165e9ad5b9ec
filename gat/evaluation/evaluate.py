"""Models x attacks -> one record per example. Sharded over processes, resumable, the same for any number of them."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Shaped
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import default_collate

from gat.attacks import AttackConfig, ImageAttack, LatentAttack, Outcome
from gat.attacks.frozen import frozen
from gat.attacks.pgd import PGD
from gat.config import Config
from gat.evaluation.metrics import metric_rows
from gat.evaluation.probe import NUM_PROBED, probe
from gat.evaluation.records import Record, at_budget, budget, control, read_records, write_records
from gat.latents import Images, PerExample, lookup
from gat.progress import progress
from gat.protocols import Examples
from gat.training.methods import Batch, Tools

AnyAttack = LatentAttack | ImageAttack

Pictures = dict[str, Shaped[np.ndarray, "..."]]
"""'ids' and 'positions' [n], 'start' and 'images' [n, c, h, w], uint8 or float32."""

UNKNOWN = 255
"""Pixels of a semantic map that have no class."""

NUM_TRANSFERRED = 100
"""Most images per model that are shown to the other models."""


class EvaluationSettings(Config):
    """What to measure.

    Attributes:
        suite: name of the set of attacks, for tables; '' if it has none.
        protocol: which settings of the attacks these are, for tables.
        attacks: name in tables -> attack. See `gat.evaluation.records` for what names mean.
        budgets: multiples of an attack's budget to draw its curve of robustness from, such as [0.5, 2].
        num_clean: test images for clean accuracy; None is all of them.
        num_real: test images for attacks on images, a seeded choice.
        num_generated: random latents for attacks on generated images, equally many per class.
        num: glob of attack names -> examples for those, instead of num_real or num_generated; the last that fits counts. A smaller
            choice is part of a larger one.
        transfer: name of an attack whose images are also shown to the other models.
        num_pictures: examples of each attack whose images are kept for the page.
        seed: of the choice and of the latents. Keep it apart from the training seed: latents must be new ones.
        width: batch size of every pass.
    """

    suite: str = ""
    protocol: Literal["", "paper", "strict"] = ""
    attacks: dict[str, AttackConfig] = Field(default_factory=dict)
    budgets: tuple[float, ...] = ()
    num_clean: int | None = Field(None, ge=1)
    num_real: int = Field(500, ge=1)
    num_generated: int = Field(500, ge=1)
    num: dict[str, int] = {"*-long": 100, "*-unbounded": 100, "*-blackbox": 100}
    transfer: str | None = None
    num_pictures: int = Field(6, ge=0)
    seed: int = 1
    width: int = Field(128, ge=1)

    def plan(self) -> dict[str, AnyAttack]:
        """All attacks, those at other budgets included."""
        found: dict[str, AnyAttack] = dict(self.attacks)
        for name, attack in self.attacks.items():
            for factor in self.budgets:
                scaled = None if control(name) or factor == 1 else at_scale(attack, factor)
                if scaled is not None:
                    found[at_budget(name, factor)] = scaled
        return found


@dataclass(frozen=True)
class Cell:
    """One model under one attack.

    Attributes:
        attack: None for clean images and for images made for other models.
        ids: positions in the data set, or numbers of random latents, ascending.
        keep: those of them whose images are kept, in the order of the seeded choice.
        exact: keep them in float32, not as bytes.
        path: of its records; `pictures` lie beside it.
        sources: for transfer, the cells whose images are shown to this model.
    """

    model: str
    name: str
    attack: AnyAttack | None
    ids: Tensor
    keep: Tensor
    exact: bool
    protocol: str
    path: Path
    sources: tuple["Cell", ...] = ()

    @property
    def pictures(self) -> Path:
        """Images of some examples before and after the attack."""
        return self.path.with_suffix(".npz")

    def part_size(self, width: int) -> int:
        """Examples per part. It depends on nothing but the cell and the width, so that a part comes out the same in any number of
        processes; large enough for the attack to hand the slots of finished examples to waiting ones."""
        return min(4, math.ceil(len(self.ids) / (8 * width))) * width

    def parts(self, width: int) -> Path:
        """Finished parts of a cell that is not finished."""
        return self.path.with_suffix(f".{self.part_size(width)}")


def cells(
    models: Mapping[str, nn.Module],
    dataset: Examples,
    tools: Tools,
    settings: EvaluationSettings,
    folder: Path,
) -> list[Cell]:
    """What `evaluate` measures, in the order of its records.

    Raises:
        ValueError: if an attack needs a generator and `tools` has none, or `transfer` names no attack on images.
    """
    plan, parts = settings.plan(), folder / "records"
    for name, attack in plan.items():
        if attack.needs == "generator" and tools.generator is None:
            raise ValueError(f"attack {name!r} moves a generator's latents: name one under `generator`")
    if settings.transfer is not None and not isinstance(plan.get(settings.transfer), ImageAttack):
        on_offer = ", ".join(name for name, attack in plan.items() if isinstance(attack, ImageAttack))
        raise ValueError(f"transfer: {settings.transfer!r} is no attack on images; on offer: {on_offer}")
    weights = {name: fingerprint(model) for name, model in models.items()}

    def cell(model: str, name: str, attack: AnyAttack | None, ids: Tensor, keep: Tensor, *more: Any) -> Cell:
        exact = name == settings.transfer
        what = [model, name, attack and attack.model_dump(mode="json"), weights[model], tools.identity,
                settings.seed, len(ids), *([len(keep)] if exact else []), *more]  # fmt: skip
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
        path = parts / f"{_slug(model)}--{_slug(name)}--{digest}.jsonl"
        protocol = "" if attack is None else protocol_id(attack, settings.protocol)
        return Cell(model, name, attack, ids, keep, exact, protocol, path)

    found: dict[tuple[str, str], Cell] = {}
    for model in models:
        for name, moved in [("none", None), *plan.items()]:
            order = _choose(dataset, name, moved, settings, draws_classes(moved, tools))
            dull = moved is None or control(name) in {"long", "blackbox"} or budget(name)[1] != 1
            kept = 0 if dull else settings.num_pictures
            kept = max(kept, NUM_TRANSFERRED) if name == settings.transfer else kept
            found[model, name] = cell(model, name, moved, order.sort().values, order[:kept])
    if settings.transfer is not None and len(models) > 1:
        shown = plan[settings.transfer]
        for model in models:
            sources = tuple(found[other, settings.transfer] for other in models if other != model)
            ids = sources[0].keep.sort().values
            bare = cell(
                model, f"{settings.transfer}-transfer", None, ids, ids[:0], [s.path.name for s in sources]
            )
            protocol = protocol_id(shown, settings.protocol)
            found[model, bare.name] = replace(bare, sources=sources, protocol=protocol)
    return sorted(found.values(), key=lambda cell: list(models).index(cell.model))


def evaluate(
    models: Mapping[str, nn.Module],
    dataset: Examples,
    tools: Tools,
    settings: EvaluationSettings,
    accelerator: Accelerator,
    folder: Path,
) -> list[Record]:
    """Run every attack against every model.

    Finished (model, attack) pairs lie in `folder/records/` under a name that says what they depend on, finished parts of the
    others in a folder of that name, so that an interrupted evaluation repeats at most one part. `folder/records.jsonl` holds
    all of them in the end, `folder/probes.json` what `gat.evaluation.probe` found out about the models.

    Args:
        models: name -> model, raw, on the device.
        dataset: the test split.
        folder: one that all processes share.

    Raises:
        ValueError: see `cells`.
    """
    (folder / "records").mkdir(parents=True, exist_ok=True)
    wanted = cells(models, dataset, tools, settings, folder)
    # The main process decides, or a process that looks later might skip what the others wait for it to do.
    missing = [not cell.path.exists() for cell in wanted]
    broadcast_object_list(missing)
    todo = sorted(
        (c for c, is_missing in zip(wanted, missing, strict=True) if is_missing),
        key=lambda c: bool(c.sources),
    )
    rank, world = accelerator.process_index, accelerator.num_processes
    shares = [[*enumerate(cell.ids.split(cell.part_size(settings.width)))][rank::world] for cell in todo]
    passes = sum(
        _passes(cell) * len(ids) for cell, share in zip(todo, shares, strict=True) for _, ids in share
    )
    what = f"evaluating {len(models)} models, {len(todo)} of {len(wanted)} model-attack pairs to do; passes at most"
    with progress(what, total=passes) as advance:
        for cell, share in zip(todo, shares, strict=True):
            parts = cell.parts(settings.width)
            parts.mkdir(exist_ok=True)
            found: list[Record] = []
            pictures: list[Pictures] = []
            for number, ids in share:
                part = parts / f"{number:05}.jsonl"
                if not part.exists():
                    made, kept = _attack_part(
                        cell, models[cell.model], ids, dataset, tools, settings, accelerator.device
                    )
                    if kept:
                        _write_pictures(part.with_suffix(".npz"), kept)
                    write_records(part, made)  # last: it says that the part is finished
                found += read_records(part)
                if part.with_suffix(".npz").exists():
                    pictures.append(read_pictures(part.with_suffix(".npz")))
                advance(_passes(cell) * len(ids), note=f"{cell.model} against {cell.name}")
            found, pictures = gather_object(found), gather_object(pictures)
            if accelerator.is_main_process:
                if pictures:
                    _write_pictures(cell.pictures, _join(pictures, cell.keep))
                write_records(cell.path, sorted(found, key=lambda record: record.id))
                for stale in cell.path.parent.glob(f"{cell.path.stem}.*/"):  # of other widths too
                    shutil.rmtree(stale)
            accelerator.wait_for_everyone()
    records = []
    for cell in wanted:
        # The same settings may be called by another protocol's name than when they were run.
        records += [replace(record, protocol=cell.protocol) for record in read_records(cell.path)]
    if accelerator.is_main_process:
        write_records(folder / "records.jsonl", records)
        probes = {
            name: _probe(name, model, dataset, tools, settings, folder) for name, model in models.items()
        }
        _write_json(folder / "probes.json", probes)
        if rows := metric_rows(records, tools.task):
            headline = next(iter(rows[0]["metrics"]))
            _write_json(
                folder / "metrics.json", {"task": tools.task.name, "headline": headline, "rows": rows}
            )
    accelerator.wait_for_everyone()
    return records


def protocol_id(attack: AnyAttack, protocol: str = "") -> str:
    """Short name of an attack's settings: two numbers compare only under the same one."""
    content = json.dumps(attack.model_dump(mode="json"), sort_keys=True)
    return f"{protocol or attack.name}-{hashlib.sha256(content.encode()).hexdigest()[:6]}"


def protocols(settings: EvaluationSettings) -> dict[str, dict[str, Any]]:
    """Protocol id -> all settings behind it, its kinds, and the bounds that its records must keep."""
    found = {}
    for attack in settings.plan().values():
        entry = {"summary": attack.summary, "kinds": kinds(attack), **attack.model_dump(mode="json")}
        if attack.bounds:
            entry["bounds"] = attack.bounds
        found[protocol_id(attack, settings.protocol)] = entry
    return found


def kinds(attack: AnyAttack) -> list[str]:
    """Names and families of an attack and of those it tries in turn. A model trained on one of them has seen this attack."""
    found = [attack.name, attack.family, *(kind for member in _members(attack) for kind in kinds(member))]
    return sorted(set(found) - {"worst_of"})


def _members(attack: AnyAttack) -> tuple[AnyAttack, ...]:
    """The attacks that this one tries in turn."""
    whole = getattr(attack, "parts", attack)  # AutoAttack names its parts itself
    return tuple(getattr(whole, "attacks", ()))


def at_scale(attack: AnyAttack, factor: float) -> AnyAttack | None:
    """The same attack with `factor` times its budget; None if it has no budget that can be scaled."""
    members = getattr(attack, "attacks", None)
    if members is not None:
        scaled = [at_scale(member, factor) for member in members]
        return None if None in scaled else type(attack).model_validate({**dict(attack), "attacks": scaled})
    name = next((name for name in ("eps", "bound") if name in type(attack).model_fields), None)
    size = getattr(attack, name) if name else None
    size = getattr(attack, "budget", None) if size is None else size
    if name is None or not isinstance(size, float | int):
        return None
    return type(attack).model_validate({**attack.model_dump(), name: size * factor})


def _passes(cell: Cell) -> int:
    """Forward passes per example, at most, as far as settings tell; for the time left."""

    def steps(attack: AnyAttack) -> int:
        if members := _members(attack):
            return sum(map(steps, members))
        names = ("total_steps", "num_steps", "steps", "max_steps", "queries")
        stated = (getattr(attack, name, None) for name in names)
        each = next((number for number in stated if isinstance(number, int)), 100)
        return (1 + each) * int(getattr(attack, "restarts", 1))

    return len(cell.sources) + 1 if cell.attack is None else steps(cell.attack)


def draws_classes(attack: AnyAttack | None, tools: Tools) -> bool:
    """Whether this attack starts from pictures that a generator invents of a class, and so from nothing in the data set."""
    if attack is None or attack.needs != "generator":
        return False
    return tools.generator is not None and tools.generator.conditions == "labels"


def _choose(
    dataset: Examples, name: str, attack: AnyAttack | None, settings: EvaluationSettings, invented: bool
) -> Tensor:
    """Positions in the data set, or numbers of random latents, in a seeded order."""
    limit = lookup(settings.num, name)
    if invented:
        total = wanted = settings.num_generated if limit is None else int(limit)
    elif attack is not None and attack.needs == "generator":  # scenes: drawn from the data set's layouts
        total, wanted = len(dataset), settings.num_generated if limit is None else int(limit)
    else:
        total = len(dataset)
        most = settings.num_clean if attack is None else settings.num_real
        wanted = int(limit) if limit is not None and attack is not None else total if most is None else most
    order = torch.randperm(total, generator=torch.Generator().manual_seed(settings.seed))
    return order[:wanted]


def _attack_part(
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
    return records, _join(pictures, cell.keep) if pictures else {}


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
        outcome = attack.run(tools.task, model, space, latents, labels, compute=compute)
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


@torch.no_grad()
def read_labels(oracle: nn.Module | None, images: Tensor, width: int) -> list[int] | None:
    """What the oracle sees, per image; None without an oracle."""
    if oracle is None:
        return None
    with frozen(oracle):
        return torch.cat([oracle(part).argmax(1) for part in images.split(width)]).tolist()


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
        "success": outcome.success.tolist(),
        "iterations": outcome.iterations.tolist(),
        "loss": outcome.loss.tolist(),
        "forwards": outcome.forwards.tolist(),
        "backwards": outcome.backwards.tolist(),
        "zero_gradients": outcome.zero_gradients.tolist(),
        "oracle_clean": oracle_clean or nobody,
        "oracle": oracle or nobody,
        "target": outcome.targets.tolist() if aimed and outcome.targets is not None else nobody,
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
            **{name: values[i] for name, values in columns.items()},
        )


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
        "clean_prediction": outcome.attacked.long().tolist(),
        "prediction": (outcome.attacked & ~outcome.success).long().tolist(),
        "success": outcome.success.tolist(),
        "iterations": outcome.iterations.tolist(),
        "loss": outcome.loss.tolist(),
        "forwards": outcome.forwards.tolist(),
        "backwards": outcome.backwards.tolist(),
        "zero_gradients": outcome.zero_gradients.tolist(),
        "clean_score": scores[0].tolist(),
        "score": scores[1].tolist(),
        "evidence": task.evidence(outcome.predictions, labels),
    }
    if tools.oracle is not None:
        for name, images in (("clean_oracle_score", outcome.start_images), ("oracle_score", outcome.images)):
            columns[name] = layout_agreement(tools.oracle, images, layouts, width).tolist()
    distances = {name: value.tolist() for name, value in outcome.distances.items()}
    for i, example in enumerate(ids):
        yield Record(
            model=cell.model,
            attack=cell.name,
            protocol=cell.protocol,
            source=source,
            id=example,
            label=1,
            distances={name: values[i] for name, values in distances.items()},
            **{name: values[i] for name, values in columns.items()},
        )


@torch.no_grad()
def layout_agreement(oracle: nn.Module, images: Images, layouts: Tensor, width: int) -> PerExample:
    """Share of each image's pixels on which a segmenter reads the class that the layout has there; unknown ones are left out.

    Args:
        layouts: [b, 2, h, w]; 255 in the semantic map is unknown.
    """
    with frozen(oracle):
        read = torch.cat([oracle(part).argmax(1) for part in images.split(width)])
    wanted = layouts[:, 0]
    known = wanted != UNKNOWN
    return ((read == wanted) & known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)


def _probe(
    name: str, model: nn.Module, dataset: Examples, tools: Tools, settings: EvaluationSettings, folder: Path
) -> dict[str, float]:
    """Of the first images of the seeded choice; kept under a name that says what it depends on."""
    what = [fingerprint(model), tools.identity, settings.seed]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    path = folder / "records" / f"{_slug(name)}--probe--{digest}.json"
    if not path.exists():
        chosen = _choose(dataset, "none", None, settings, invented=False)[:NUM_PROBED]
        batch = default_collate([dataset[int(i)] for i in chosen])
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        _write_json(path, probe(tools.task, model, batch["images"].to(device), batch["labels"].to(device)))
    found: dict[str, float] = json.loads(path.read_text())
    return found


def _portable(images: Tensor, exact: bool) -> Shaped[np.ndarray, "n c h w"]:
    images = images.detach().float().contiguous()
    return (images if exact else (images.clamp(0, 1) * 255).round().to(torch.uint8)).cpu().numpy()


def _join(parts: Sequence[Pictures], keep: Tensor) -> Pictures:
    """Of all parts, in the order of `keep`."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rank = {position: i for i, position in enumerate(keep.tolist())}
    order = np.argsort([rank[position] for position in joined["positions"].tolist()])
    return {name: value[order] for name, value in joined.items()}


def read_pictures(path: Path) -> Pictures:
    """What an evaluation kept of a cell."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _write_pictures(path: Path, pictures: Pictures) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **pictures)  # type: ignore[arg-type]
    os.replace(temporary, path)


def _write_json(path: Path, content: object) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers by name."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _slug(text: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in text)
