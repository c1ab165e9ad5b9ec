"""What does a run gain and lose between its clean start and where training led?

    python scripts/interpolation.py runs/fashion_gat_3 runs/fashion_gat_4 --out results/fashion_gat/interpolation.json --plot curve.png

For several shares of the way (`train.interpolate` is the one that a run returns): clean accuracy of the undefended and of the trained
model on the test images, and what the run's own latent attack leaves them on latents, or layouts, that are not judged. It reads the
weights from the runs' `training/*/state.pt`, which hold both ends if `train.interpolate` was below 1.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader
from tradeoff import pictures, scenes, write

from gat.attacks import LatentAttack
from gat.cli.compose import ORIGINAL, Run, RunConfig, open_run
from gat.cli.exit_codes import exit_code
from gat.cli.table import print_table
from gat.config import load
from gat.progress import progress
from gat.report.names import model_name
from gat.report.plots import SERIES, to_png
from gat.training.loop import interpolate


def both_ends(run: Run, name: str) -> tuple[nn.Module, nn.Module]:
    """The start and the trained weights of `name`.

    Raises:
        ValueError: if the run has not kept them.
    """
    path = run.config.folder / "training" / name / "state.pt"
    if not path.is_file():
        raise ValueError(f"{path} is missing; it is written by training {name}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    settings = run.config.train
    if "start" not in state or settings.ema_decay or run.config.method.kept_branch is not None:
        raise ValueError(
            f"{path} does not hold both ends of an interpolation; that takes train.interpolate below 1, ema_decay 0 and shared batch norms"
        )
    if state["step"] < settings.steps:
        raise ValueError(f"{path} is at step {state['step']} of {settings.steps}; finish the run first")
    ends = run.new_model(), run.new_model()
    for model, weights in zip(ends, (state["start"], state["model"]), strict=True):
        model.load_state_dict(weights)
        model.to(run.accelerator.device).to(memory_format=torch.channels_last)
        model.eval().requires_grad_(False)
    return ends


@torch.no_grad()
def clean(run: Run, model: nn.Module) -> dict[str, float]:
    """The task's first number on all test examples."""
    task, device = run.tools.task, run.accelerator.device
    evidence: list[Any] = []
    for batch in DataLoader(run.test_data, batch_size=run.config.evaluation.width):  # type: ignore[arg-type]
        images, labels = batch["images"].to(device), batch["labels"].to(device)
        evidence += task.evidence(task.predict(model(images)), labels)
    name, value = next(iter(task.metrics(evidence).items()))
    return {f"clean_{name}": round(value, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--share", type=float, nargs="+", default=[0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 1.0])
    parser.add_argument("--attack", default="gat", help="which of the run's evaluation.attacks")
    parser.add_argument("--n", type=int, default=200, help="random latents, or scenes")
    parser.add_argument(
        "--seed", type=int, default=3, help="of the latents; those of the run's own are judged"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="a picture of the curves")
    args = parser.parse_args()

    opened = [open_run(load(RunConfig, [path / "config.yaml"], [f"out={path}"])) for path in args.runs]
    rows = []
    with progress("measuring", total=2 * len(opened) * len(args.share)) as advance:
        for run in opened:
            attack = attack_of(run, args.attack, args.seed)
            assert run.tools.generator is not None
            measure = scenes if run.tools.generator.conditions == "layouts" else pictures
            for name in (ORIGINAL, run.config.method.name):
                for share in args.share:
                    start, model = both_ends(run, name)
                    interpolate(model, start, share)
                    (left,) = measure(run, model, [attack], args.n, args.seed)
                    where = {"run": run.config.name, "model": name, "share": share}
                    rows.append(where | clean(run, model) | left)
                    advance(1)
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if args.out:
        write(args.out, {"attack": args.attack, "n": args.n, "seed": args.seed}, rows)
    if args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        args.plot.write_bytes(to_png(draw(rows)))


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Clean against attacked, a thin line for every run and a thick one for their mean, with the shares along it."""
    names = list(rows[0])
    clean_name = next(name for name in names if name.startswith("clean_"))
    left_name = next(
        name for name in names if name.endswith(("_left", "_after")) and not name.startswith("oracle")
    )
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("none")
    for color, model in zip(SERIES, dict.fromkeys(row["model"] for row in rows), strict=False):
        shares = sorted({row["share"] for row in rows})
        runs = list(dict.fromkeys(row["run"] for row in rows))
        value = {(row["run"], row["share"]): row for row in rows if row["model"] == model}
        lines = torch.tensor(
            [
                [[100 * value[run, share][name] for name in (clean_name, left_name)] for share in shares]
                for run in runs
            ]
        )
        for line in lines if len(lines) > 1 else ():
            axes.plot(*line.T, color=color, linewidth=0.7, alpha=0.5)
        mean = lines.mean(0)
        axes.plot(*mean.T, color=color, linewidth=2, marker="o", markersize=4, label=model_name(model))
        for share, place in zip(shares, mean.tolist(), strict=True):
            if share in (0, 1) if model == ORIGINAL else share:
                axes.annotate(
                    f"{share:g}", place, (5, 3), textcoords="offset points", fontsize=8, color=color
                )
    axes.set_xlabel("clean, %")
    axes.set_ylabel("under the attack, %")
    axes.set_title("Share of the way from the clean start", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    return figure


def attack_of(run: Run, name: str, seed: int) -> LatentAttack:
    """The latent attack that the run is judged by.

    Raises:
        ValueError: if there is none of that name, or the run is judged on the latents of this seed.
    """
    offered = {n: a for n, a in run.config.evaluation.attacks.items() if isinstance(a, LatentAttack)}
    if name not in offered or run.tools.generator is None:
        raise ValueError(
            f"{run.config.folder} has no latent attack {name}; on offer: {', '.join(offered) or 'none'}"
        )
    if seed == run.config.evaluation.seed:
        raise ValueError(f"--seed {seed}: {run.config.folder} is judged on these latents, take others")
    return offered[name]


if __name__ == "__main__":
    sys.exit(exit_code("interpolation.py", main))
