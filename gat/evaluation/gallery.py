"""Which examples are shown: chosen by seed, never by hand."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import nn

from gat.attacks import Compute, LatentAttack
from gat.attacks.run import Outcome
from gat.config import Config
from gat.evaluation.judge import read_labels, read_pictures
from gat.evaluation.plan import Cell
from gat.evaluation.records import read_records
from gat.progress import progress
from gat.report.gallery import GalleryItem, Panel
from gat.training.methods import Tools


class GallerySettings(Config):
    """What is shown.

    Attributes:
        attack: moved in turn by `move` and `group`; its steps on styles are as large as those of GAT's training, since a single
            group has to do it alone.
        groups: of layers.
        num_examples: random latents, the first ones of this seed; the same in every group and for every model.
    """

    attack: LatentAttack = LatentAttack(step_size={"style/*": 0.05, "noise/*": 0.4})
    groups: tuple[str, ...] = ("all", "coarse", "middle", "fine")
    num_examples: int = Field(6, ge=1)
    seed: int = 2


def make_gallery(
    models: Mapping[str, nn.Module], tools: Tools, settings: GallerySettings
) -> list[GalleryItem]:
    """Original, noise-based and style-based image of the same latents, per model and layer group (Fig. 3 of the paper).

    Raises:
        ValueError: without a generator.
    """
    space = tools.generator
    if space is None:
        raise ValueError("a gallery needs a generator")
    ids = torch.arange(settings.num_examples)
    order = torch.randperm(len(space.classes), generator=torch.Generator().manual_seed(settings.seed))
    labels = order[ids % len(order)]
    latents = space.sample(labels, ids, settings.seed)
    labels = labels.to(next(iter(latents.values())).device)
    items = []
    with progress("drawing the gallery", total=len(models) * len(settings.groups)) as advance:
        for model_name, model in models.items():
            for group in settings.groups:
                outcomes = {}
                for move in ("noise", "style"):
                    attack = LatentAttack.model_validate(
                        {**settings.attack.model_dump(), "group": group, "move": move}
                    )
                    outcomes[move] = attack.run(
                        tools.task, model, space, latents, labels, compute=tools.compute, ids=ids
                    )
                items += _items(model_name, group, ids.tolist(), labels.tolist(), outcomes, tools)
                advance(1)
    return items


def pictures_of(cells: Sequence[Cell], num_examples: int) -> list[GalleryItem]:
    """What an evaluation kept of its attacks: the first examples of its seeded choice, attack by attack, then model by model."""
    order = {name: i for i, name in enumerate(dict.fromkeys(cell.name for cell in cells))}
    items = []
    for cell in sorted(cells, key=lambda cell: order[cell.name]):
        if not cell.pictures.exists():
            continue
        pictures, records = read_pictures(cell.pictures), {r.id: r for r in read_records(cell.path)}
        for i, example in enumerate(pictures["ids"][:num_examples].tolist()):
            record = records[example]
            start, image = (_float(pictures[name][i]) for name in ("start", "images"))
            panel = Panel(
                cell.name, image, record.prediction, record.success, record.iterations, record.oracle
            )
            items.append(
                GalleryItem(
                    model=cell.model,
                    group=cell.name,
                    id=example,
                    label=record.label,
                    original=start,
                    prediction=record.clean_prediction,
                    oracle=record.oracle_clean,
                    panels=(panel,),
                )
            )
    return items


def _float(picture: UInt8[np.ndarray, "3 h w"] | Float[np.ndarray, "3 h w"]) -> Float[np.ndarray, "3 h w"]:
    return picture.astype(np.float32) / 255 if picture.dtype == np.uint8 else picture


def _items(
    model: str, group: str, ids: list[int], labels: list[int], outcomes: Mapping[str, Outcome], tools: Tools
) -> list[GalleryItem]:
    first = next(iter(outcomes.values()))
    width = (tools.compute or Compute()).width
    nobody: list[int | None] = [None] * len(ids)
    oracle_start = read_labels(tools.oracle, first.start_images, width) or nobody
    oracle = {
        move: read_labels(tools.oracle, outcome.images, width) or nobody for move, outcome in outcomes.items()
    }
    return [
        GalleryItem(
            model=model,
            group=group,
            id=example,
            label=labels[i],
            original=first.start_images[i],
            prediction=int(first.clean_predictions[i]),
            oracle=oracle_start[i],
            panels=tuple(
                Panel(
                    kind=move,
                    image=outcome.images[i],
                    prediction=int(outcome.predictions[i]),
                    success=bool(outcome.success[i]),
                    iterations=int(outcome.iterations[i]),
                    oracle=oracle[move][i],
                )
                for move, outcome in outcomes.items()
            ),
        )
        for i, example in enumerate(ids)
    ]
