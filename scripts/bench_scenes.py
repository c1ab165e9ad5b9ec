"""Adversarial scenes per second: this project's loop on SPADE against the straightforward one.

    python scripts/bench_scenes.py --run runs/fashion_table1/seed0/segmentation
    python scripts/bench_scenes.py --run runs/fashion_table1/seed0/segmentation --group all --json > bench.json

The same comparison as `bench_attack.py`, for gamma and beta: offsets start at zero, and the straightforward loop computes
gamma and beta from the label map, renders every block, and differentiates everything, in every step. It is told to find
images that fool; all loops find the same ones.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from measuring import AGREE_WITHIN, MODELS, REPOSITORY, Variant, machine, write_results
from straightforward_loop import Found, check_attack, lockstep
from torch import Tensor, nn
from torch.utils.data import default_collate

from gat.attacks import Compute, LatentAttack
from gat.cli.compose import RunConfig
from gat.cli.compose import open_run as compose_run
from gat.cli.exit_codes import exit_code
from gat.config import ConfigError, load
from gat.latents import Images, Latents, split, take
from gat.protocols import Task
from generators.spade.networks import encode_layouts
from generators.spade.space import SEED, SPADESpace


@dataclass(frozen=True)
class Setting:
    """What all variants share.

    Attributes:
        layouts, labels, start: of all scenes; `start` are the latents of all sites.
        width: batch size of every pass.
    """

    task: Task
    space: SPADESpace
    attack: LatentAttack
    layouts: Int[Tensor, "b 2 h w"]
    labels: Tensor
    start: Latents
    width: int


Rows = Int[Tensor, " b"]
Scene = tuple[Latents, Callable[[Latents], Images]]  # what moves, and how it becomes an image


def offsets(setting: Setting, rows: Rows) -> Scene:
    """Offsets of gamma and beta, and everything from the label map on anew in every step."""
    generator = setting.space.generator
    moved = setting.attack.moved(setting.space)
    semantics = encode_layouts(setting.layouts[rows], generator.config)

    def render(change: Latents) -> Images:
        maps = generator.modulation(semantics)
        maps |= {site: maps[site] + value for site, value in change.items()}
        # With a style code the first block's input does not come from the layout.
        state = setting.start[SEED][rows] if generator.config.use_vae else generator.start(semantics)
        return generator.render(state, maps) * 0.5 + 0.5

    return {site: torch.zeros_like(setting.start[site][rows]) for site in moved}, render


def whole_maps(setting: Setting, rows: Rows) -> Scene:
    """Gamma and beta themselves, computed once; every block is rendered."""
    here = take(setting.start, rows)
    home, kept = split(here, setting.attack.moved(setting.space))
    generator = setting.space.generator
    return home, lambda moved: generator.render(here[SEED], kept | moved) * 0.5 + 0.5


def resumed(setting: Setting, rows: Rows) -> Scene:
    """Blocks in front of the first moved one are rendered once as well."""
    here, moved = take(setting.start, rows), setting.attack.moved(setting.space)
    renderer, everyone = setting.space.freeze(here, moved), torch.arange(len(rows))
    return split(here, moved)[0], lambda latents: renderer(latents, everyone)


def straightforward(
    setting: Setting, model: nn.Module, scene: Callable[[Setting, Rows], Scene], weight_gradients: bool
) -> Callable[[Rows], Found]:
    """`lockstep`, batch by batch."""
    sizes = setting.attack.steps(setting.space, setting.attack.moved(setting.space)).size
    modules = [model, setting.space.generator]

    def run(examples: Rows) -> Found:
        model.to(memory_format=torch.contiguous_format)
        for module in modules:
            module.eval().requires_grad_(weight_gradients)
        found = []
        for rows in examples.split(setting.width):
            start, render = scene(setting, rows)
            thrown_away = modules if weight_gradients else []
            labels, attack = setting.labels[rows], setting.attack
            found.append(lockstep(setting.task, render, model, start, labels, attack, sizes, thrown_away))
        for module in modules:
            module.requires_grad_(False).zero_grad()
        return Found.join(found)

    return run


def ours(setting: Setting, model: nn.Module) -> Callable[[Rows], Found]:
    """`LatentAttack`, from layouts on like the others."""

    def run(examples: Rows) -> Found:
        model.to(memory_format=torch.channels_last)
        start = setting.space.sample(setting.layouts[examples], examples, seed=0)
        outcome = setting.attack.run(
            setting.task,
            model,
            setting.space,
            start,
            setting.labels[examples],
            compute=Compute(setting.width),
        )
        return Found(outcome.attacked, outcome.success, outcome.iterations)

    return run


def variants(setting: Setting, model: nn.Module) -> list[Variant]:
    """The straightforward loop and then one idea more each, up to ours."""
    base = Variant("straightforward", straightforward(setting, model, offsets, True), True)
    alone = Variant("gradients of latents only", straightforward(setting, model, offsets, False), True, base)
    maps = Variant("label branch once", straightforward(setting, model, whole_maps, False), True, alone)
    prefix = Variant("prefix reuse", straightforward(setting, model, resumed, False), True, maps)
    refill = Variant("finished scenes leave, slots refill", ours(setting, model), previous=prefix)
    return [base, alone, maps, prefix, refill]


def bench(setting: Setting, models: Mapping[str, nn.Module], repeats: int) -> dict[str, Any]:
    """Measure everything.

    Args:
        models: 'undefended' and 'trained'.

    Raises:
        ValueError: for an attack that the straightforward loop does not do, or too few scenes.
    """
    n, attack = len(setting.labels), setting.attack
    if n < repeats or repeats < 1:
        raise ValueError(f"need a repeat and a scene for each at least, got n={n}, repeats={repeats}")
    check_attack(attack)
    chains = {name: variants(setting, model) for name, model in models.items()}
    for name, chain in chains.items():
        print(f"warming up: {name}", file=sys.stderr)
        for variant in chain:
            variant.run(torch.arange(min(n, 4)))
    for repeat in range(repeats):
        for name, chain in chains.items():
            print(f"repeat {repeat + 1} of {repeats}: {name}", file=sys.stderr)
            for variant in chain:
                variant.measure(n, repeat, repeats)
    result: dict[str, Any] = {}
    for name, chain in chains.items():
        base, best = chain[0], chain[-1]
        rates = {"straightforward": base.everything.success_rate, "ours": best.everything.success_rate}
        # Of scenes, not of those that fool: a trained model may let none through, and the loops find the same ones.
        ratio = median(base.sec_per_example) / median(best.sec_per_example)
        result |= {
            f"ratio_{name}": round(ratio, 2),
            f"success_{name}": {key: round(rate, 4) for key, rate in rates.items()},
            f"success_agrees_{name}": abs(rates["straightforward"] - rates["ours"]) <= AGREE_WITHIN,
        }
    return result | {
        "ideas": [{"model": name, **row(variant)} for name, chain in chains.items() for variant in chain],
        "n": n,
        "width": setting.width,
        "repeats": repeats,
        "attack": attack.summary,
    }


def row(variant: Variant) -> dict[str, Any]:
    """For the report."""
    rate = 1 / median(variant.sec_per_example)
    before = variant.previous
    ratio = None if before is None else rate * median(before.sec_per_example)
    found = variant.everything
    return {
        "name": variant.name,
        "scenes_per_sec": round(rate, 2),
        "ratio_to_previous": ratio and round(ratio, 3),
        "success": round(found.success_rate, 4),
        "mean_iterations": round(float(found.iterations[found.attacked].float().mean()), 2),
    }


def show(result: Mapping[str, Any]) -> str:
    """A plain table."""
    lines = [f"{'model':<11} {'':<36} {'scenes/s':>9} {'x previous':>10} {'success':>8} {'steps':>6}"]
    for line in result["ideas"]:
        ratio = "" if line["ratio_to_previous"] is None else f"{line['ratio_to_previous']:.2f}"
        lines.append(
            f"{line['model']:<11} {line['name']:<36} {line['scenes_per_sec']:>9.2f} {ratio:>10} {line['success']:>8.1%} "
            f"{line['mean_iterations']:>6.2f}"
        )
    for name in MODELS:
        agree = "" if result[f"success_agrees_{name}"] else f"  THEY DIFFER BY MORE THAN {AGREE_WITHIN:.0%}"
        lines.append(f"{name}: {result[f'ratio_{name}']:.2f} times the straightforward loop{agree}")
    lines.append(
        f"{result['n']} scenes, width {result['width']}, {result['repeats']} repeats; {result['attack']}"
    )
    lines.append(f"{result['hardware']}, {result['threads']} threads, torch {result['torch']}")
    return "\n".join(lines)


def open_setting(
    folder: Path, group: str, step_size: float, n: int, width: int
) -> tuple[Setting, dict[str, nn.Module]]:
    """The first test scenes, the models and the generator of a finished run, in float32 whatever the run's precision: all variants
    shall find the same images.

    Raises:
        ConfigError: if the run is not one of scenes, or its SPADE moves coarse offsets instead of the maps.
    """
    run = compose_run(load(RunConfig, [folder / "config.yaml"], [f"out={folder}", 'mixed_precision="no"']))
    space = run.tools.generator
    if not isinstance(space, SPADESpace) or space.coarse_grid is not None:
        raise ConfigError(
            f"{folder} has generator {space.name if space else 'none'}; wanted a run with a SPADE whose maps move themselves"
        )
    items = [run.test_data[i] for i in range(min(n, len(run.test_data)))]
    batch = default_collate(items)
    attack = LatentAttack.model_validate(
        {"group": group, "step_size": {"gamma/*": step_size, "beta/*": step_size}}
    )
    start = space.sample(batch["layouts"], torch.arange(len(items)), seed=0)
    setting = Setting(run.tools.task, space, attack, batch["layouts"], batch["labels"], start, width)
    return setting, {name: run.finished_model(stem) for name, stem in MODELS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, default=REPOSITORY / "runs" / "fashion_table1" / "seed0" / "segmentation"
    )
    parser.add_argument("--group", default="fine", choices=("coarse", "middle", "fine", "all"))
    parser.add_argument("--step-size", type=float, default=0.03, help="in standard deviations")
    parser.add_argument("--n", type=int, default=48, help="scenes")
    parser.add_argument("--width", type=int, default=16, help="batch size of every pass, of both loops")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="all cores if not given")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    parser.add_argument(
        "--out", type=Path, help="folder to write table.json into, such as results/bench_scenes"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    setting, models = open_setting(args.run, args.group, args.step_size, args.n, args.width)
    result = bench(setting, models, args.repeats) | {"seeds": [0]} | machine()
    if args.out:
        write_results(result, args.out, setting.task.name)
    print(json.dumps(result, indent=1) if args.json else show(result))


if __name__ == "__main__":
    sys.exit(exit_code("bench_scenes.py", main))
