"""Models x attacks -> one record per example. Sharded over processes, resumable, the same for any number of them."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.utils.data import default_collate

from gat.evaluation.judge import Pictures, attack_part, join_pictures, read_pictures, write_pictures
from gat.evaluation.metrics import metric_rows
from gat.evaluation.plan import EvaluationSettings, cells, choose, fingerprint, most_passes, slug
from gat.evaluation.probe import NUM_PROBED, probe
from gat.evaluation.records import Record, read_records, write_records
from gat.files import write_json
from gat.progress import progress
from gat.protocols import Examples
from gat.training.methods import Tools


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
        most_passes(cell) * len(ids) for cell, share in zip(todo, shares, strict=True) for _, ids in share
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
                    made, kept = attack_part(
                        cell, models[cell.model], ids, dataset, tools, settings, accelerator.device
                    )
                    if kept:
                        write_pictures(part.with_suffix(".npz"), kept)
                    write_records(part, made)  # last: it says that the part is finished
                found += read_records(part)
                if part.with_suffix(".npz").exists():
                    pictures.append(read_pictures(part.with_suffix(".npz")))
                advance(most_passes(cell) * len(ids), note=f"{cell.model} against {cell.name}")
            found, pictures = gather_object(found), gather_object(pictures)
            if accelerator.is_main_process:
                if pictures:
                    write_pictures(cell.pictures, join_pictures(pictures, cell.keep))
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
        write_json(folder / "probes.json", probes)
        if rows := metric_rows(records, tools.task):
            headline = next(iter(rows[0]["metrics"]))
            write_json(folder / "metrics.json", {"task": tools.task.name, "headline": headline, "rows": rows})
    accelerator.wait_for_everyone()
    return records


def _probe(
    name: str, model: nn.Module, dataset: Examples, tools: Tools, settings: EvaluationSettings, folder: Path
) -> dict[str, float]:
    """Of the first images of the seeded choice; kept under a name that says what it depends on."""
    what = [fingerprint(model), tools.identity, settings.seed]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    path = folder / "records" / f"{slug(name)}--probe--{digest}.json"
    if not path.exists():
        chosen = choose(dataset, "none", None, settings, invented=False)[:NUM_PROBED]
        batch = default_collate([dataset[int(i)] for i in chosen])
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        write_json(path, probe(tools.task, model, batch["images"].to(device), batch["labels"].to(device)))
    found: dict[str, float] = json.loads(path.read_text())
    return found
