"""How far can an attack go before its images stop showing their label?

    python scripts/tradeoff.py runs/fashion_gat_0 --out results/fashion_gat/tradeoff.json
    python scripts/tradeoff.py runs/fashion_table1/seed*/segmentation --group fine --pixels alike cospgd --step 0.03 --budget 0.06 0.07

For a range of step sizes and budgets: what the latent attack leaves the undefended model (or, with --model, others) of one or more
runs, and what their independent oracle still reads. Of pictures that is accuracy, and the share of successful images that show their
label (among those whose starting image did). Of scenes it is the task's number for the whole set (pixel accuracy, average precision)
at the last iteration, and the share of the layout's pixels that the oracle reads; of detectors also what the boxes alone are worth,
since an attack that aims at wrong classes in the same boxes may improve them.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from gat.attacks import LatentAttack
from gat.cli.compose import ORIGINAL, Run, RunConfig, open_run
from gat.cli.exit_codes import exit_code
from gat.cli.table import print_table
from gat.config import load
from gat.evaluation.judge import layout_agreement, outputs
from gat.files import write_json
from gat.progress import progress
from gat.report.statistics import proportion
from tasks.detection import DetectionTask, average_precision


def pictures(
    run: Run, model: nn.Module, attacks: list[LatentAttack], n: int, seed: int
) -> Iterator[dict[str, Any]]:
    """A row per attack on random latents."""
    space, oracle, task = run.tools.generator, run.tools.oracle, run.tools.task
    assert space is not None and oracle is not None
    ids = torch.arange(n)
    labels = ids % len(space.classes)
    latents = space.sample(labels, ids, seed)
    for attack in attacks:
        outcome = attack.run(task, model, space, latents, labels, compute=run.tools.compute, ids=ids)
        with torch.no_grad():
            before, after = oracle(outcome.start_images).argmax(1), oracle(outcome.images).argmax(1)
        left = proportion(int((outcome.attacked & ~outcome.success).sum()), n)
        judged = outcome.success & (before == labels)
        kept = proportion(int((judged & (after == labels)).sum()), max(int(judged.sum()), 1))
        yield {
            "accuracy_left": round(left.value, 4),
            "oracle_agreement": round(kept.value, 4),
            "oracle_low": round(kept.low, 4),
            "oracle_high": round(kept.high, 4),
            "judged": kept.n,
            "mean_iterations": round(float(outcome.iterations[outcome.success].float().mean()), 2),
        }


def scenes(
    run: Run, model: nn.Module, attacks: list[LatentAttack], n: int, seed: int
) -> Iterator[dict[str, Any]]:
    """A row per attack on renderings of validation layouts, on which a run is not judged."""
    space, oracle, task = run.tools.generator, run.tools.oracle, run.tools.task
    assert space is not None and oracle is not None
    width = run.config.evaluation.width
    batch = validation_scenes(run, n)
    labels, layouts = batch["labels"], batch["layouts"]
    latents = space.sample(layouts, batch["ids"], seed)
    for attack in attacks:
        outcome = attack.run(task, model, space, latents, labels, compute=run.tools.compute, ids=batch["ids"])
        change = (outcome.images - outcome.start_images).abs().mean()
        row: dict[str, Any] = {"n": len(labels)}
        for when, images, answers in (
            ("before", outcome.start_images, outcome.clean_predictions),
            ("after", outcome.images, outcome.predictions),
        ):
            evidence = task.evidence(answers, labels)
            name, value = next(iter(task.metrics(evidence).items()))
            row[f"{name}_{when}"] = round(value, 4)
            if isinstance(task, DetectionTask):
                row[f"{name}_of_boxes_{when}"] = round(average_precision(boxes_alone(evidence), 1)[name], 4)
            reads = layout_agreement(outputs(oracle, images, width), layouts)
            row[f"oracle_{when}"] = round(float(reads.mean()), 4)
        yield row | {"mean_change_of_pixels": round(float(change), 4)}


def boxes_alone(evidence: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `DetectionTask.evidence` gave, with all classes taken for one: how good the boxes are, whatever is said to be in them."""
    return [
        {
            "boxes": [[*box[:4], 0, box[5]] for box in example["boxes"]],
            "detections": [[*found[:5], 0] for found in example["detections"]],
        }
        for example in evidence
    ]


def validation_scenes(run: Run, n: int) -> dict[str, torch.Tensor]:
    """The first validation scenes of a run's data, at most `n`: nothing was taught on them and nothing is judged on them."""
    data = run.config.data.build("val")
    batch: dict[str, torch.Tensor] = default_collate([data[i] for i in range(min(n, len(data)))])
    return batch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--model", nargs="+", default=[ORIGINAL], help="who is attacked: original, gat")
    parser.add_argument("--n", type=int, default=256, help="random latents, or scenes")
    parser.add_argument(
        "--style", type=float, nargs="+", default=[0.005, 0.01, 0.02], help="in sigma, of pictures"
    )
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.1, 0.2, 0.4], help="in sigma, of pictures"
    )
    parser.add_argument(
        "--step", type=float, nargs="+", default=[0.01, 0.02, 0.03], help="in sigma, of scenes"
    )
    parser.add_argument(
        "--budget", type=float, nargs="+", default=[0.0], help="in sigma, of scenes; 0 is none"
    )
    parser.add_argument("--group", nargs="+", default=["all"], choices=("coarse", "middle", "fine", "all"))
    parser.add_argument("--goal", nargs="+", default=["loss"], choices=("loss", "least_likely", "random"))
    parser.add_argument("--contrast", action="store_true", help="goals that aim also ascend the label's loss")
    parser.add_argument(
        "--pixels", nargs="+", default=["alike"], choices=("alike", "segpgd", "cospgd"), help="for segmenters"
    )
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    opened = [open_run(load(RunConfig, [path / "config.yaml"], [f"out={path}"])) for path in args.runs]
    conditions = {
        run.tools.generator.conditions if run.tools.generator and run.tools.oracle else None for run in opened
    }
    if len(conditions) > 1 or None in conditions:
        raise ValueError("this needs runs with a generator and an oracle, all of pictures or all of scenes")
    of_scenes = conditions == {"layouts"}
    sizes: list[dict[str, Any]] = (
        [
            {"pixels": pixels, "step": step, "budget": budget}
            for pixels, step, budget in product(args.pixels, args.step, args.budget)
        ]
        if of_scenes
        else [{"noise_step": noise, "style_step": style} for noise, style in product(args.noise, args.style)]
    )
    chosen = [
        {"group": group, "goal": goal, "contrast": args.contrast and goal != "loss", **size}
        for group, goal, size in product(args.group, args.goal, sizes)
    ]
    attacks = [attack_of(setting, of_scenes) for setting in chosen]
    measure = scenes if of_scenes else pictures
    rows = []
    with progress("attacking", total=len(opened) * len(args.model) * len(attacks)) as advance:
        for run, name in product(opened, args.model):
            found = measure(run, run.finished_model(name), attacks, args.n, args.seed)
            for setting, row in zip(chosen, found, strict=True):
                rows.append({"run": run.config.name, "model": name} | setting | row)
                advance(1)
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if args.out:
        write(args.out, {"n": args.n, "seed": args.seed}, rows)


def write(path: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The rows, and the command that made them; never half a file."""
    content = {"command": shlex.join(["python", *sys.argv]), **about, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def attack_of(setting: dict[str, Any], of_scenes: bool) -> LatentAttack:
    """The attack of a row. On scenes it always takes all its steps: the paper reads them at iteration 10."""
    budgets = {}
    if of_scenes:
        sizes = dict.fromkeys(("gamma/*", "beta/*"), setting["step"])
        if setting["budget"]:
            budgets = dict.fromkeys(sizes, setting["budget"])
    else:
        sizes = {"style/*": setting["style_step"], "noise/*": setting["noise_step"]}
    return LatentAttack(
        group=setting["group"],
        goal=setting["goal"],
        contrast=setting["contrast"],
        pixels=setting.get("pixels", "alike"),
        step_size=sizes,
        eps=budgets,
        stop_when_fooled=not of_scenes,
    )


if __name__ == "__main__":
    sys.exit(exit_code("tradeoff.py", main))
