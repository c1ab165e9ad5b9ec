"""Models x attacks -> one record per example. Sharded over processes, resumable, the same for any number of them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import default_collate

from gat.attacks import Attack, AttackConfig, Outcome
from gat.attacks.frozen import frozen
from gat.attacks.pgd import FGSM, PGD
from gat.config import Config
from gat.evaluation.records import Record, read_records, write_records
from gat.progress import progress
from gat.protocols import Examples
from gat.spaces.pixels import PixelSpace
from gat.training.methods import Tools


class EvaluationSettings(Config):
    """What to measure.

    Attributes:
        attacks: name in tables -> attack.
        num_clean: test images for clean accuracy; None is all of them.
        num_real: test images for attacks on images, a seeded choice.
        num_generated: random latents for attacks on generated images, equally many per class.
        seed: of the choice and of the latents. Keep it apart from the training seed: latents must be new ones.
        width: batch size of every pass.
    """

    attacks: dict[str, AttackConfig] = Field(default_factory=dict)
    num_clean: int | None = Field(None, ge=1)
    num_real: int = Field(500, ge=1)
    num_generated: int = Field(500, ge=1)
    seed: int = 1
    width: int = Field(128, ge=1)


def evaluate(
    models: Mapping[str, nn.Module],
    dataset: Examples,
    tools: Tools,
    settings: EvaluationSettings,
    accelerator: Accelerator,
    folder: Path,
) -> list[Record]:
    """Run every attack against every model.

    Finished (model, attack) pairs lie in `folder/records/` under a name that says what they depend on, so an interrupted
    evaluation repeats only the pair it was in. `folder/records.jsonl` holds all of them in the end.

    Args:
        models: name -> model, raw, on the device.
        dataset: the test split.

    Raises:
        ValueError: if an attack needs a generator and `tools` has none.
    """
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    parts = folder / "records"
    parts.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    for model_name, model in models.items():
        weights = fingerprint(model)
        for name, attack in [("none", None), *settings.attacks.items()]:
            if attack is not None and attack.needs == "generator" and tools.generator is None:
                raise ValueError(f"attack {name!r} moves a generator's latents: name one under `generator`")
            ids = _choose_ids(dataset, attack, settings)
            what = [
                model_name,
                name,
                attack and attack.model_dump(mode="json"),
                weights,
                tools.identity,
                settings.seed,
                len(ids),
            ]
            digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
            path = parts / f"{_slug(model_name)}--{_slug(name)}--{digest}.jsonl"
            if not path.exists():
                mine = ids[rank::world]
                found: list[Record] = []
                with progress(f"{model_name} against {name}", total=len(mine)) as advance:
                    # Big chunks, so that the attack can hand the slots of finished examples to waiting ones.
                    for chunk in mine.split(settings.width * 4) if len(mine) else ():
                        found += _attack_chunk(
                            model_name, model, name, attack, chunk, dataset, tools, settings, device
                        )
                        advance(len(chunk))
                found = sorted(gather_object(found), key=lambda record: record.id)
                if accelerator.is_main_process:
                    write_records(path, found)
                accelerator.wait_for_everyone()
            records += read_records(path)
    if accelerator.is_main_process:
        write_records(folder / "records.jsonl", records)
    return records


def protocol_id(attack: Attack) -> str:
    """Short name of an attack's settings: two numbers compare only under the same one."""
    content = json.dumps(attack.model_dump(mode="json"), sort_keys=True)
    return f"{attack.name}-{hashlib.sha256(content.encode()).hexdigest()[:6]}"


def protocols(settings: EvaluationSettings) -> dict[str, dict[str, Any]]:
    """Protocol id -> all settings behind it, and the bounds that its records must keep."""
    found = {}
    for attack in settings.attacks.values():
        bounds = {"linf_pixels": attack.eps} if isinstance(attack, FGSM) else {}
        if isinstance(attack, PGD):
            bounds = {f"{attack.norm}_pixels": attack.eps}
        found[protocol_id(attack)] = {"summary": attack.summary, **attack.model_dump(mode="json")}
        if bounds:
            found[protocol_id(attack)]["bounds"] = bounds
    return found


def _choose_ids(dataset: Examples, attack: Attack | None, settings: EvaluationSettings) -> Tensor:
    """Positions in the data set, or numbers of random latents."""
    if attack is not None and attack.needs == "generator":
        return torch.arange(settings.num_generated)
    total = len(dataset)
    wanted = settings.num_clean if attack is None else settings.num_real
    if wanted is None or wanted >= total:
        return torch.arange(total)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(settings.seed))
    return order[:wanted].sort().values


def _attack_chunk(
    model_name: str,
    model: nn.Module,
    name: str,
    attack: Attack | None,
    chunk: Tensor,
    dataset: Examples,
    tools: Tools,
    settings: EvaluationSettings,
    device: torch.device,
) -> Iterator[Record] | list[Record]:
    compute = type(tools.compute)(
        settings.width, tools.compute.autocast, tools.compute.gradient_scale, tools.compute.sync_every
    )
    if attack is not None and attack.needs == "generator":
        assert tools.generator is not None
        labels = (chunk % len(tools.generator.classes)).to(device)
        latents = tools.generator.sample(labels, chunk, settings.seed)
        outcome = attack(tools.task, model, tools.generator, latents, labels, compute=compute)
        aimed = attack.goal == "targeted"
        return _records(
            model_name, name, protocol_id(attack), "generated", chunk.tolist(), labels, outcome, tools, aimed
        )
    batch = default_collate([dataset[int(i)] for i in chunk])
    images, labels, ids = batch["images"].to(device), batch["labels"].to(device), batch["ids"]
    # Clean accuracy is the attack that takes no step.
    pixel_attack = attack if isinstance(attack, PGD | FGSM) else PGD(eps=0, steps=0, random_start=False)
    outcome = pixel_attack(
        tools.task,
        model,
        PixelSpace(tuple(images.shape[1:])),
        {"pixels": images},
        labels,
        compute=compute,
        ids=ids,
    )
    protocol = "" if attack is None else protocol_id(attack)
    aimed = attack is not None and attack.goal == "targeted"
    return _records(model_name, name, protocol, "real", ids.tolist(), labels, outcome, tools, aimed)


@torch.no_grad()
def read_labels(oracle: nn.Module | None, images: Tensor, width: int) -> list[int] | None:
    """What the oracle sees, per image; None without an oracle."""
    if oracle is None:
        return None
    with frozen(oracle):
        return torch.cat([oracle(part).argmax(1) for part in images.split(width)]).tolist()


def _records(
    model: str,
    attack: str,
    protocol: str,
    source: str,
    ids: Sequence[int],
    labels: Tensor,
    outcome: Outcome,
    tools: Tools,
    aimed: bool = False,
) -> list[Record]:
    width = tools.compute.width
    oracle_clean = read_labels(tools.oracle, outcome.start_images, width)
    oracle = oracle_clean if attack == "none" else read_labels(tools.oracle, outcome.images, width)
    columns: dict[str, list[Any]] = {
        "label": labels.tolist(),
        "clean_prediction": outcome.clean_predictions.tolist(),
        "prediction": outcome.predictions.tolist(),
        "success": outcome.success.tolist(),
        "iterations": outcome.iterations.tolist(),
        "loss": outcome.loss.tolist(),
        "forwards": outcome.forwards.tolist(),
        "backwards": outcome.backwards.tolist(),
        "oracle_clean": oracle_clean or [None] * len(ids),
        "oracle": oracle or [None] * len(ids),
        "target": outcome.targets.tolist() if aimed and outcome.targets is not None else [None] * len(ids),
    }
    distances = {name: value.tolist() for name, value in outcome.distances.items()}
    return [
        Record(
            model=model,
            attack=attack,
            protocol=protocol,
            source=source,
            id=example,
            distances={name: values[i] for name, values in distances.items()},
            **{name: values[i] for name, values in columns.items()},
        )
        for i, example in enumerate(ids)
    ]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers by name."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _slug(text: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in text)
