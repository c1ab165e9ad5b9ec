"""Attack a model of a finished run and keep the pictures.

Example:
    gat attack runs/quickstart --out pictures.png
    gat attack runs/quickstart --model gat --n 8 --out x.npz move=style group=coarse
    gat attack runs/quickstart --target Bag --out bags.png goal=targeted max_steps=30
    gat attack runs/quickstart --attack pgd --out pgd.png eps=0.03

`key=value` words set the attack's own settings; `--attack` says which attack: latent, pgd, spatial, ... (--help lists them).
A .png shows, from top to bottom, start, attacked image and four times their difference, one column per example. Of scenes it
also shows what the model answers: below start and attacked image its label map, or in them its boxes, found (blue) or wrong
(orange, dashed), and objects that it missed (white, long dashes). An .npz holds
`start_images` and `images` [n, h, w, 3] uint8, `labels`, `clean_predictions`, `predictions`, `success`, `iterations` and `classes`.
Scenes have label maps or boxes for labels and predictions, and scores instead of classes in the table.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from gat.attacks import ATTACKS, ImageAttack, LatentAttack
from gat.attacks.run import Outcome
from gat.cli.compose import ORIGINAL, Run, RunConfig, open_run
from gat.cli.table import print_table
from gat.config import ConfigError, load
from gat.evaluation.plan import draws_classes
from gat.files import written_whole
from gat.protocols import Task
from gat.report.gallery import to_uint8
from gat.report.sheet import boxed_picture, label_picture, picture, sheet
from gat.training.methods import Batch
from tasks.datasets import SceneDataset
from tasks.detection import DetectionTask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the attack")
    parser.add_argument("--attack", default="latent", help=f"one of {', '.join(ATTACKS)} (default: latent)")
    parser.add_argument(
        "--model", default=ORIGINAL, help="whose weights: original, gat, ... (default: original)"
    )
    parser.add_argument("--n", type=int, default=16, help="examples (default: 16)")
    parser.add_argument("--labels", help="classes to attack, such as Coat,Bag (default: all in turn)")
    parser.add_argument("--target", help="class to aim at; sets goal=targeted")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random latents, or of the choice of test images"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write: .png or .npz")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the outcome")


def run(args: argparse.Namespace) -> int:
    if args.out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out: wanted a file ending in .png or .npz, got {args.out}")
    if args.n < 1:
        raise ValueError(f"--n: wanted 1 or more, got {args.n}")
    if args.attack not in ATTACKS:
        raise ConfigError(f"--attack: {args.attack!r} is not one of {', '.join(ATTACKS)}")
    settings = args.run / "config.yaml"
    if not settings.is_file():
        raise FileNotFoundError(f"{args.run} is not the folder of a run: it has no config.yaml")
    overrides = [*args.overrides, *(["goal=targeted"] if args.target else [])]
    attack = load(ATTACKS[args.attack], [], overrides)
    current = open_run(load(RunConfig, [settings], [f"out={args.run}"]))
    classes, task = current.train_data.classes, current.tools.task
    if task.name != "classification" and (args.labels or args.target):
        raise ConfigError(f"--labels and --target choose classes of pictures; {task.name} has none to choose")
    labels_wanted = parse_classes(args.labels, classes) if args.labels else list(range(len(classes)))
    target = parse_classes(args.target, classes)[0] if args.target else None
    if target is not None and args.labels is None:
        labels_wanted.remove(target)  # nothing is aimed at its own class

    model = current.finished_model(args.model)
    ids, batch = starts(current, attack, labels_wanted, args.n, args.seed)
    labels = batch.labels
    targets = None if target is None else torch.full_like(labels, target)
    compute = current.tools.compute
    if isinstance(attack, ImageAttack):
        outcome = attack.run(task, model, batch.images, labels, targets=targets, compute=compute, ids=ids)
    else:
        space = current.tools.generator
        assert space is not None
        latents = space.sample(batch.conditions(space), ids, args.seed)
        outcome = attack.run(task, model, space, latents, labels, targets=targets, compute=compute, ids=ids)
    write(args.out, task, outcome, labels, classes)
    show(args, task, outcome, ids, labels, classes)
    return 0


def parse_classes(text: str, classes: tuple[str, ...]) -> list[int]:
    """Comma-separated names or numbers.

    Raises:
        ValueError: listing the classes.
    """
    found = []
    for word in text.split(","):
        if word.isdigit() and int(word) < len(classes):
            found.append(int(word))
        elif word in classes:
            found.append(classes.index(word))
        else:
            raise ValueError(
                f"no class {word!r}; on offer: {', '.join(f'{i} {name}' for i, name in enumerate(classes))}"
            )
    return found


def starts(
    run: Run, attack: LatentAttack | ImageAttack, wanted: list[int], n: int, seed: int
) -> tuple[torch.Tensor, Batch]:
    """Ids and examples to begin with: random latents of the wanted classes in turn (they have no images yet), or a seeded choice
    of test images of these classes, or of scenes.

    Raises:
        ConfigError: for an attack on latents in a run without a generator.
    """
    device, data = run.accelerator.device, run.test_data
    if attack.needs == "generator" and run.tools.generator is None:
        raise ConfigError("this run has no generator, so there are no latents to attack; take --attack pgd")
    if draws_classes(attack, run.tools):
        labels = torch.tensor(wanted, device=device).repeat(n // len(wanted) + 1)[:n]
        return torch.arange(n), Batch(torch.empty(n, 0, 0, 0, device=device), labels)
    fitting = torch.arange(len(data))
    if not isinstance(data, SceneDataset):
        fitting = torch.isin(data.labels, torch.tensor(wanted)).nonzero().squeeze(1)
    chosen = fitting[torch.randperm(len(fitting), generator=torch.Generator().manual_seed(seed))[:n]]
    items = default_collate([data[int(i)] for i in chosen])
    return chosen, Batch(**{part: items[part].to(device) for part in Batch._fields if part in items})


def write(path: Path, task: Task, outcome: Outcome, labels: torch.Tensor, classes: tuple[str, ...]) -> None:
    """A sheet or an archive."""
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        if path.suffix == ".png":
            sheet(columns(task, outcome, labels, classes)).save(file, "PNG")
            return
        np.savez_compressed(
            file,
            start_images=np.stack([to_uint8(image) for image in outcome.start_images]),
            images=np.stack([to_uint8(image) for image in outcome.images]),
            labels=labels.cpu().numpy(),
            clean_predictions=outcome.clean_predictions.cpu().numpy(),
            predictions=outcome.predictions.cpu().numpy(),
            success=outcome.success.cpu().numpy(),
            iterations=outcome.iterations.cpu().numpy(),
            classes=np.array(classes),
        )


def columns(
    task: Task, outcome: Outcome, labels: torch.Tensor, classes: tuple[str, ...]
) -> list[list[Image.Image]]:
    """The pictures of every example, from top to bottom."""
    pairs = (outcome.start_images, outcome.clean_predictions), (outcome.images, outcome.predictions)
    change = [to_uint8(image) for image in ((outcome.images - outcome.start_images).abs() * 4).clamp(max=1)]
    found = []
    for i, truth in enumerate(labels.cpu()):
        column = []
        for images, answers in pairs:
            image, answer = to_uint8(images[i]), answers[i].cpu().numpy()
            if isinstance(task, DetectionTask):
                seen, objects = answer[answer[:, 5] >= 0], truth.numpy()[truth.numpy()[:, 4] >= 0]
                column.append(boxed_picture(image, seen, objects, classes, task.threshold, task.overlap))
                continue
            column.append(picture(image))
            if task.name == "segmentation":
                column.append(label_picture(answer.astype(np.uint8), len(classes)))
        column.append(picture(change[i]))
        found.append(column)
    return found


def show(
    args: argparse.Namespace,
    task: Task,
    outcome: Outcome,
    ids: torch.Tensor,
    labels: torch.Tensor,
    classes: tuple[str, ...],
) -> None:
    """One line per example, or JSON: what it was called before and after, or how well the scene was read."""
    rows: list[dict[str, Any]]
    if task.name == "classification":
        named = (labels, outcome.clean_predictions, outcome.predictions)
        rows = [
            dict(zip(("label", "before", "after"), (classes[i] for i in row), strict=True))
            for row in zip(*(column.tolist() for column in named), strict=True)
        ]
    else:
        scores = [task.score(answers, labels) for answers in (outcome.clean_predictions, outcome.predictions)]
        rows = [
            {"scene": example, "before": round(before, 3), "after": round(after, 3)}
            for example, before, after in zip(
                ids.tolist(), *(score.tolist() for score in scores), strict=True
            )
        ]
    ends = zip(rows, outcome.success.tolist(), outcome.iterations.tolist(), strict=True)
    rows = [row | {"fooled": fooled, "iterations": steps} for row, fooled, steps in ends]
    attacked = int(outcome.attacked.sum())
    if args.json:
        print(
            json.dumps(
                {
                    "out": str(args.out),
                    "attacked": attacked,
                    "fooled": int(outcome.success.sum()),
                    "examples": rows,
                }
            )
        )
        return
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    print(
        f"{int(outcome.success.sum())} of {attacked} examples that {args.model} got right fool it now; {args.out}"
    )
