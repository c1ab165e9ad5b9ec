"""What an evaluation measures: which models, under which attacks, on which examples."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gat.attacks import AttackConfig, ImageAttack, LatentAttack
from gat.config import Config
from gat.evaluation.records import at_budget, budget, control
from gat.latents import lookup
from gat.protocols import Examples
from gat.training.methods import Tools

AnyAttack = LatentAttack | ImageAttack


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
        path = parts / f"{slug(model)}--{slug(name)}--{digest}.jsonl"
        protocol = "" if attack is None else protocol_id(attack, settings.protocol)
        return Cell(model, name, attack, ids, keep, exact, protocol, path)

    found: dict[tuple[str, str], Cell] = {}
    for model in models:
        for name, moved in [("none", None), *plan.items()]:
            order = choose(dataset, name, moved, settings, draws_classes(moved, tools))
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


def most_passes(cell: Cell) -> int:
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


def choose(
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


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers by name."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def slug(text: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in text)
