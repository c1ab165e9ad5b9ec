"""Scenes over the iterations of an attack, and what models answer to each (Fig. 5 of the paper): chosen by seed, never by hand."""

from collections.abc import Mapping
from typing import Any, cast, get_args

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.utils.data import default_collate

from gat.attacks import AttackConfig, Compute, ImageAttack, LatentAttack, Outcome
from gat.attacks.frozen import frozen
from gat.attacks.objective import mixed_precision
from gat.config import Config
from gat.evaluation.plan import AnyAttack
from gat.progress import progress
from gat.protocols import Examples, Task
from gat.report.strips import Boxes, Frame, LabelMap, SceneTask, State, Strip
from gat.training.methods import Batch, Tools


class StripSettings(Config):
    """What is shown.

    Attributes:
        attacks: name in tables -> attack. By default all gammas and betas by the paper's step size (Sec. 4), on to the last step
            whether or not the model is fooled.
        iterations: gradient steps after which a picture is shown; the start, 0, always is.
        num_examples: scenes, the first ones of a seeded choice; the same for every model and attack.
        seed: of the choice and of the latents.
        width: scenes attacked together. All iterates of all of their moved latents are held in memory.
    """

    attacks: dict[str, AttackConfig] = Field(
        {"gat": LatentAttack(step_size={"*": 0.001}, unit="absolute", stop_when_fooled=False)}, min_length=1
    )
    iterations: tuple[int, ...] = Field((0, 1, 2, 5, 10), min_length=1)
    num_examples: int = Field(4, ge=1)
    seed: int = 2
    width: int = Field(4, ge=1)

    @field_validator("iterations")
    @classmethod
    def _count_up_from_the_start(cls, iterations: tuple[int, ...]) -> tuple[int, ...]:
        if min(iterations) < 0:
            raise ValueError(f"iterations are counted from 0, the start; got {min(iterations)}")
        return tuple(sorted({0, *iterations}))


def make_strips(
    models: Mapping[str, nn.Module], dataset: Examples, tools: Tools, settings: StripSettings
) -> list[Strip]:
    """Trajectories of attacks on scenes of a data set: every shown iterate, the model's answer to it, and its score. Attacks on
    latents start from renderings of the scenes' layouts, attacks on images from the real images.

    Args:
        models: name -> model, on its device; left as found.
        dataset: the test split, with layouts if a generator is needed.
        tools: task, generator and precision.

    Returns:
        Attack by attack, scene by scene, model by model.

    Raises:
        ValueError: without a generator where one is needed, for a task without scenes, or for an attack that has not one sequence
            of iterates, or fewer of them than are to be shown.
    """
    task = tools.task
    if task.name not in get_args(SceneTask):
        raise ValueError(f"strips are of {' or '.join(get_args(SceneTask))}, got the task {task.name}")
    for name, attack in settings.attacks.items():
        if attack.needs == "generator" and tools.generator is None:
            raise ValueError(f"strips of {name!r} move a generator's latents: name one under `generator`")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(settings.seed))
    chosen = order[: settings.num_examples]
    found: dict[tuple[str, int, str], Strip] = {}
    with progress("drawing the strips", total=len(models) * len(settings.attacks) * len(chosen)) as advance:
        for part in chosen.split(settings.width):
            batch = default_collate([dataset[int(i)] for i in part])
            for name, attack in settings.attacks.items():
                for model_name, model in models.items():
                    for strip in _strips(model_name, name, model, attack, batch, tools, settings):
                        found[name, strip.id, model_name] = strip
                    advance(len(part))
    rank = {name: i for i, name in enumerate(settings.attacks)}
    return sorted(
        found.values(), key=lambda strip: rank[strip.attack]
    )  # stable: scenes and models stay in order


def _strips(
    model_name: str,
    name: str,
    model: nn.Module,
    attack: AnyAttack,
    batch: Mapping[str, Any],
    tools: Tools,
    settings: StripSettings,
) -> list[Strip]:
    """Of the scenes of one batch, under one attack on one model."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    compute, task, ids = tools.compute or Compute(), tools.task, batch["ids"]
    images, labels = batch["images"].to(device), batch["labels"].to(device)
    if isinstance(attack, ImageAttack):
        outcome = attack.run(task, model, images, labels, compute=compute, record=True, ids=ids)
    else:
        space = tools.generator
        assert space is not None
        layouts = batch["layouts"].to(device) if "layouts" in batch else None
        latents = space.sample(Batch(images, labels, layouts).conditions(space), ids, settings.seed)
        outcome = attack.run(task, model, space, latents, labels, compute=compute, record=True, ids=ids)
    frames = _shown(outcome, name, settings.iterations)
    answers = [_answers(task, model, some, compute.width) for some in frames]
    scores = [task.score(answer, labels).tolist() for answer in answers]
    truths = _portable(task, labels, 4)
    shown = [_portable(task, answer, 5) for answer in answers]
    counts: Any = task if task.name == "detection" else None  # from which score and overlap on a box counts
    states: dict[tuple[bool, bool], State] = {
        (True, True): "fooled",
        (True, False): "held",
        (False, False): "wrong before",
    }
    return [
        Strip(
            model=model_name,
            attack=name,
            settings=attack.summary,
            id=example,
            truth=truths[i],
            frames=tuple(
                Frame(iteration, frames[t][i].cpu(), shown[t][i], scores[t][i])
                for t, iteration in enumerate(settings.iterations)
            ),
            state=states[bool(outcome.attacked[i]), bool(outcome.success[i])],
            iterations=int(outcome.iterations[i]),
            threshold=float(counts.threshold) if counts else None,
            overlap=float(counts.overlap) if counts else None,
        )
        for i, example in enumerate(ids.tolist())
    ]


def _shown(outcome: Outcome, name: str, iterations: tuple[int, ...]) -> list[Float[Tensor, "b c h w"]]:
    """The iterates to show; the start is the image that the attack was given, not a random point near it."""
    trajectory = outcome.trajectory
    if trajectory is None and not bool(outcome.attacked.any()):
        return [outcome.start_images for _ in iterations]  # nothing to attack: they all stand still
    if trajectory is None:
        raise ValueError(f"attack {name!r} has not one sequence of iterates to show")
    if iterations[-1] >= len(trajectory):
        raise ValueError(
            f"iterations: {iterations[-1]} is to be shown, but attack {name!r} takes {len(trajectory) - 1} steps"
        )
    later = [trajectory[t].float().clamp(0, 1) for t in iterations[1:]]
    return [outcome.start_images.clamp(0, 1), *later]


@torch.no_grad()
def _answers(task: Task, model: nn.Module, images: Float[Tensor, "b c h w"], width: int) -> Tensor:
    """In float32, as the final verdict of an attack."""
    with frozen(model), mixed_precision(images.device, None):
        return torch.cat([task.predict(model(part)) for part in images.split(width)])


def _portable(task: Task, values: Tensor, class_column: int) -> list[LabelMap | Boxes]:
    """Label maps as bytes, boxes without padding."""
    arrays = values.cpu().numpy()
    if task.name == "segmentation":
        return [array.astype(np.uint8) for array in arrays]
    return [cast(Boxes, array[array[:, class_column] >= 0].astype(np.float32)) for array in arrays]
