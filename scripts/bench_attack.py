"""Adversarial examples per second: this project's loop against the straightforward one.

    python scripts/bench_attack.py --run runs/quickstart
    python scripts/bench_attack.py --run runs/quickstart --json > bench.json

Both loops start from the same latents, take the same steps on the same classifiers (a run's undefended and trained one) and
are asked for the same thing: examples that fool. The straightforward loop (`straightforward_loop.py`) is written as one would
write it first. Ours is `LatentAttack`, with its looks before and after and all its bookkeeping. In between stand the ideas that
make the difference, added one at a time; each is measured against the one before.

A rate is fooled examples / (median seconds per example asked for * examples asked for). Measurements take turns, so that
a disturbance hits all alike. What runs all steps on all examples takes a share of them in each repeat, the others take all.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from measuring import (
    AGREE_WITHIN,
    MODELS,
    REPOSITORY,
    FlopCount,
    Variant,
    machine,
    matmul_flops_per_sec,
    write_results,
)
from pydantic import TypeAdapter
from straightforward_loop import Found, check_attack, lockstep, render_fused
from torch import Tensor, nn

from gat.attacks import Compute, LatentAttack
from gat.cli.exit_codes import exit_code
from gat.config import ConfigError, read_yaml
from gat.latents import Images, Latents, Rows, split, take
from gat.protocols import Renderer, Site
from generators.stylegan2.generator import Activations, Kernel
from generators.stylegan2.settings import StyleGAN2SpaceConfig
from generators.stylegan2.space import StyleGAN2Space
from tasks.classification import ClassificationTask
from tasks.datasets import DatasetConfig
from tasks.models import ModelConfig
from tasks.models.settings import ModelSettings

# Ours --------------------------------------------------------------------------------------------------------------------


class WithoutReuse:
    """A StyleGAN2 space that renders every image from its first layer.

    Args:
        layout: of weights and activations: `torch.contiguous_format` is channels first.
    """

    name = "stylegan2"

    def __init__(self, space: StyleGAN2Space, layout: torch.memory_format = torch.channels_last) -> None:
        self.space, self.layout = space, layout
        self.kernels = {
            layer: Kernel(kernel.weight.contiguous(memory_format=layout), kernel.energy)
            for layer, kernel in space.kernels.items()
        }

    @property
    def sites(self) -> Mapping[str, Site]:
        """Those of the space."""
        return self.space.sites

    def render(self, latents: Latents) -> Images:
        """Images of latents of all sites."""
        synthesis = self.space.generator.synthesis
        const = getattr(synthesis, f"b{synthesis.layers[0].resolution}").const.to(self.space.dtype)
        const = const.expand(len(next(iter(latents.values()))), -1, -1, -1)
        before = Activations(const.contiguous(memory_format=self.layout))
        with torch.autocast(const.device.type, enabled=False):
            images = synthesis.render(latents, latents, self.kernels, 0, before, self.space.dtype)
        return (images * 0.5 + 0.5).clamp(0, 1)

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        """See `gat.protocols.Space.freeze`; nothing is computed in advance."""
        _, kept = split(latents, moved)

        def renderer(moved: Latents, rows: Rows) -> Images:
            return self.render(take(kept, rows) | moved)

        return renderer


# What is measured --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What all variants share.

    Attributes:
        spaces: one generator, by precision.
        start, labels: of all examples.
        width: batch size of every pass.
        chosen: the precision of ours.
    """

    task: ClassificationTask
    spaces: Mapping[torch.dtype, StyleGAN2Space]
    attack: LatentAttack
    start: Latents
    labels: Int[Tensor, " b"]
    width: int
    chosen: torch.dtype


def straightforward(
    setting: Setting, model: nn.Module, render: Callable[[Latents], Images], weight_gradients: bool
) -> Callable[[Int[Tensor, " b"]], Found]:
    """`lockstep`, batch by batch."""
    space, attack = setting.spaces[torch.float32], setting.attack
    sizes = attack.steps(space, attack.moved(space)).size
    modules = [model, space.generator.synthesis]

    def run(examples: Int[Tensor, " b"]) -> Found:
        model.to(memory_format=torch.contiguous_format)
        for module in modules:
            module.eval().requires_grad_(weight_gradients)
        thrown_away = modules if weight_gradients else []
        found = Found.join(
            lockstep(
                setting.task,
                render,
                model,
                take(setting.start, rows),
                setting.labels[rows],
                attack,
                sizes,
                thrown_away,
            )
            for rows in examples.split(setting.width)
        )
        for module in modules:
            module.requires_grad_(False).zero_grad()
        return found

    return run


def ours(
    setting: Setting,
    model: nn.Module,
    space: StyleGAN2Space | WithoutReuse,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.channels_last,
    **other: Any,
) -> Callable[[Int[Tensor, " b"]], Found]:
    """`LatentAttack`; `other` replaces settings of it."""
    attack = setting.attack.model_copy(update=other)
    compute = Compute(setting.width, None if dtype == torch.float32 else dtype)

    def run(examples: Int[Tensor, " b"]) -> Found:
        model.to(memory_format=layout)
        start, labels = take(setting.start, examples), setting.labels[examples]
        outcome = attack.run(setting.task, model, space, start, labels, compute=compute)
        return Found(outcome.attacked, outcome.success, outcome.iterations)

    return run


def variants(setting: Setting, model: nn.Module) -> tuple[list[Variant], list[Variant]]:
    """The straightforward loop and then one idea more each, up to ours; and what else is worth knowing.

    Ours is what pays on this machine: bfloat16 where its matrix product is the faster one. Otherwise that is shown apart.
    Prefix reuse has nothing to reuse while all layers move; then it is shown apart, where only the last ones do.
    """
    space, half_space = setting.spaces[torch.float32], setting.spaces[torch.bfloat16]
    chosen = setting.spaces[setting.chosen]
    first = WithoutReuse(space, torch.contiguous_format)

    def fused(latents: Latents) -> Images:
        return render_fused(space.generator.synthesis, latents)

    base = Variant("straightforward", straightforward(setting, model, fused, True), True)
    alone = Variant("gradients of latents only", straightforward(setting, model, fused, False), True, base)
    shared = Variant(
        "shared kernels, demodulation tables",
        straightforward(setting, model, first.render, False),
        True,
        alone,
    )
    refill = Variant(
        "finished examples leave, slots refill",
        ours(setting, model, first, layout=torch.contiguous_format),
        previous=shared,
    )
    layout = Variant("channels_last", ours(setting, model, WithoutReuse(space)), previous=refill)
    reuse = Variant("prefix reuse", ours(setting, model, space), previous=layout)
    half = Variant(
        "bfloat16, float32 verdict", ours(setting, model, half_space, torch.bfloat16), previous=reuse
    )
    used = [base, alone, shared, refill, layout, reuse]
    used, apart = ([*used, half], []) if setting.chosen == torch.bfloat16 else (used, [half])
    if setting.attack.group == "fine":
        return used, apart
    fine = Variant(
        "fine group alone, from the first layer",
        ours(setting, model, WithoutReuse(chosen), setting.chosen, group="fine", sites=()),
    )
    prefix = Variant(
        "fine group alone, prefix reuse",
        ours(setting, model, chosen, setting.chosen, group="fine", sites=()),
        previous=fine,
    )
    return used, [fine, prefix, *apart]


def bench(
    task: ClassificationTask,
    classifiers: Mapping[str, nn.Module],
    spaces: Mapping[torch.dtype, StyleGAN2Space],
    attack: LatentAttack,
    n: int,
    width: int,
    repeats: int,
    seed: int,
    precision: str | None = None,
) -> dict[str, Any]:
    """Measure everything.

    Args:
        classifiers: 'undefended' and 'trained'.
        spaces: the same generator in float32 and bfloat16.
        n: examples; `repeats` times the width at least, or the straightforward loop gets narrower batches.
        precision: of ours, 'float32' or 'bfloat16'; None takes that of the faster matrix product.

    Returns:
        What `--json` prints, but for the machine.

    Raises:
        ValueError: for an attack that the straightforward loop does not do, or too few examples.
    """
    if n < repeats or repeats < 1:
        raise ValueError(f"need a repeat and an example for each at least, got n={n}, repeats={repeats}")
    check_attack(attack)
    peak = {dtype: matmul_flops_per_sec(dtype) for dtype in spaces}
    chosen = getattr(torch, precision) if precision else max(peak, key=peak.__getitem__)
    labels = torch.arange(n) % len(task.classes)
    start = spaces[torch.float32].sample(labels, torch.arange(n), seed)
    setting = Setting(task, spaces, attack, start, labels, width, chosen)
    chains, asides = {}, {}
    for name, model in classifiers.items():
        chains[name], asides[name] = variants(setting, model)

    flops = {}
    for name in classifiers:
        print(f"warming up: {name}", file=sys.stderr)
        for variant in chains[name] + asides[name]:
            variant.run(torch.arange(min(n, 8 if variant.shares else width)))
        with FlopCount() as counter:
            chains[name][-1].run(torch.arange(n))
        flops[name] = counter.total
    for repeat in range(repeats):
        for name in classifiers:
            print(f"repeat {repeat + 1} of {repeats}: {name}", file=sys.stderr)
            for variant in chains[name] + asides[name]:
                variant.measure(n, repeat, repeats)
    peak = {dtype: max(before, matmul_flops_per_sec(dtype)) for dtype, before in peak.items()}

    result: dict[str, Any] = {}
    for name, chain in chains.items():
        base, best = chain[0], chain[-1]
        rates = {"straightforward": base.everything.success_rate, "ours": best.everything.success_rate}
        reached = flops[name] / (median(best.sec_per_example) * n)
        result |= {
            f"ratio_{name}": round(best.examples_per_sec / base.examples_per_sec, 2),
            f"success_{name}": {key: round(rate, 4) for key, rate in rates.items()},
            f"success_agrees_{name}": abs(rates["straightforward"] - rates["ours"]) <= AGREE_WITHIN,
            f"peak_fraction_{name}": round(reached / peak[chosen], 3),
        }
    return result | {
        "peak_fraction": result["peak_fraction_undefended"],
        "precision": str(chosen).removeprefix("torch."),
        "matmul_peak_gflops_per_sec": {
            str(dtype).removeprefix("torch."): round(value / 1e9, 1) for dtype, value in peak.items()
        },
        "ideas": [
            {"model": name, "in_ours": variant in chains[name], **variant.row}
            for name in classifiers
            for variant in chains[name] + asides[name]
        ],
        "n": n,
        "width": width,
        "repeats": repeats,
        "seeds": [seed],
        "attack": attack.summary,
    }


# From a run's folder to the page -----------------------------------------------------------------------------------------


def open_run(
    folder: Path, checkpoint: Path | None
) -> tuple[ClassificationTask, dict[str, nn.Module], dict[torch.dtype, StyleGAN2Space], LatentAttack]:
    """The classifiers, generator and attack of a finished run.

    Raises:
        ConfigError, ValueError, FileNotFoundError: if something of it is missing.
    """
    tree = read_yaml(folder / "config.yaml")
    data = TypeAdapter(DatasetConfig).validate_python(tree["data"]).build("test")
    size = data[0]["images"].shape[-1]
    classifiers = {}
    for name, stem in MODELS.items():
        weights = folder / f"{stem}.safetensors"
        if not weights.is_file():
            raise ConfigError(f"{folder} has no {weights.name}; wanted a finished run of method gat")
        model: ModelSettings = TypeAdapter(ModelConfig).validate_python(tree["model"] | {"weights": weights})
        classifiers[name] = model.build(len(data.classes), size).eval()
    generator = StyleGAN2SpaceConfig.model_validate(
        (tree.get("generator") or {}) | ({"checkpoint": checkpoint} if checkpoint else {})
    )
    spaces = {dtype: generator.build(data.classes, "cpu", dtype) for dtype in (torch.float32, torch.bfloat16)}
    attacks = tree.get("evaluation", {}).get("attacks", {}).values()
    latent = [attack for attack in attacks if attack["name"] == "latent"]
    attack = LatentAttack.model_validate(latent[0] if latent else {})
    return ClassificationTask(data.classes), classifiers, spaces, attack


def show(result: Mapping[str, Any]) -> str:
    """A plain table."""
    lines = [f"{'model':<11} {'':<39} {'examples/s':>10} {'x previous':>10} {'success':>8} {'steps':>6}"]
    for row in result["ideas"]:
        ratio = "" if row["ratio_to_previous"] is None else f"{row['ratio_to_previous']:.2f}"
        note = "" if row["in_ours"] else "  not in ours"
        lines.append(
            f"{row['model']:<11} {row['name']:<39} {row['examples_per_sec']:>10.2f} {ratio:>10} {row['success']:>8.1%} "
            f"{row['mean_iterations']:>6.2f}{note}"
        )
    lines.append("")
    for name in MODELS:
        rates = result[f"success_{name}"]
        agree = "" if result[f"success_agrees_{name}"] else f"  THEY DIFFER BY MORE THAN {AGREE_WITHIN:.0%}"
        lines.append(
            f"{name}: {result[f'ratio_{name}']:.2f} times the straightforward loop; success {rates['straightforward']:.1%} "
            f"and ours {rates['ours']:.1%}{agree}; {result[f'peak_fraction_{name}']:.0%} of the matmul peak"
        )
    peaks = ", ".join(f"{dtype} {value:.0f}" for dtype, value in result["matmul_peak_gflops_per_sec"].items())
    lines.append(f"ours runs in {result['precision']}; matmul peak in GFLOP/s: {peaks}")
    lines.append(
        f"{result['n']} examples, width {result['width']}, {result['repeats']} repeats; {result['attack']}"
    )
    lines.append(f"{result['hardware']}, {result['threads']} threads, torch {result['torch']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, default=REPOSITORY / "runs" / "quickstart", help="a finished run's folder"
    )
    parser.add_argument("--checkpoint", type=Path, help="generator; that of the run if not given")
    parser.add_argument("--n", type=int, default=128, help="examples; 512 take some ten minutes on two cores")
    parser.add_argument("--width", type=int, default=64, help="batch size of every pass, of both loops")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the latents")
    parser.add_argument("--threads", type=int, help="all cores if not given")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of ours; that of the faster matrix product if not given",
    )
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    parser.add_argument(
        "--out", type=Path, help="folder to write table.json into, such as results/bench_attack"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    task, classifiers, spaces, attack = open_run(args.run, args.checkpoint)
    found = bench(
        task, classifiers, spaces, attack, args.n, args.width, args.repeats, args.seed, args.precision
    )
    result = found | machine()
    if args.out:
        write_results(result, args.out)
    print(json.dumps(result, indent=1) if args.json else show(result))


if __name__ == "__main__":
    sys.exit(exit_code("bench_attack.py", main))
