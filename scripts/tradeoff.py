"""How far can an attack go before its images stop showing their label?

    python scripts/tradeoff.py runs/fashion_gat_0 --out results/fashion_gat/tradeoff.json

For a range of step sizes: accuracy that the latent attack leaves the undefended model of a run, and the share of successful
images on which the run's independent oracle still reads the label (among those whose starting image it read right).
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

import torch

from gat.attacks import LatentAttack
from gat.cli.compose import ORIGINAL, RunConfig, open_run
from gat.cli.table import print_table
from gat.config import load
from gat.progress import progress
from gat.report.statistics import proportion


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default=ORIGINAL)
    parser.add_argument("--n", type=int, default=256, help="random latents")
    parser.add_argument("--style", type=float, nargs="+", default=[0.005, 0.01, 0.02], help="in sigma")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1, 0.2, 0.4], help="in sigma")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    run = open_run(load(RunConfig, [args.run / "config.yaml"], [f"out={args.run}"]))
    space, oracle, task = run.tools.generator, run.tools.oracle, run.tools.task
    if space is None or oracle is None:
        raise SystemExit("this needs a run with a generator and an oracle")
    model = run.finished_model(args.model)
    ids = torch.arange(args.n)
    labels = ids % len(space.classes)
    latents = space.sample(labels, ids, args.seed)
    rows = []
    with progress("attacking", total=len(args.style) * len(args.noise)) as advance:
        for noise in args.noise:
            for style in args.style:
                attack = LatentAttack(step_size={"style/*": style, "noise/*": noise})
                outcome = attack.run(task, model, space, latents, labels, compute=run.tools.compute)
                with torch.no_grad():
                    before, after = oracle(outcome.start_images).argmax(1), oracle(outcome.images).argmax(1)
                left = proportion(int((outcome.attacked & ~outcome.success).sum()), args.n)
                judged = outcome.success & (before == labels)
                kept = proportion(int((judged & (after == labels)).sum()), max(int(judged.sum()), 1))
                rows.append(
                    {
                        "style_step": style,
                        "noise_step": noise,
                        "accuracy_left": round(left.value, 4),
                        "oracle_agreement": round(kept.value, 4),
                        "oracle_low": round(kept.low, 4),
                        "oracle_high": round(kept.high, 4),
                        "judged": kept.n,
                        "mean_iterations": round(
                            float(outcome.iterations[outcome.success].float().mean()), 2
                        ),
                    }
                )
                advance(1)
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if args.out:
        content = {
            "command": shlex.join(["python", *sys.argv]),
            "n": args.n,
            "seed": args.seed,
            "rows": rows,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.out.with_name(args.out.name + ".tmp")
        temporary.write_text(json.dumps(content, indent=1))
        os.replace(temporary, args.out)


if __name__ == "__main__":
    main()
