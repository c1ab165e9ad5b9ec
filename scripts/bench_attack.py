"""Adversarial examples per second: this project's loop against the straightforward one.

    python scripts/bench_attack.py --run runs/quickstart
    python scripts/bench_attack.py --run runs/quickstart --json > bench.json

Both loops start from the same latents, take the same steps on the same classifiers (a run's undefended and trained one) and
are asked for the same thing: examples that fool. The straightforward loop is written below as one would write it first. Ours
is `LatentAttack`, with its looks before and after and all its bookkeeping. In between stand the ideas that make the
difference, added one at a time; each is measured against the one before.

A rate is fooled examples / (median seconds per example asked for * examples asked for). Measurements take turns, so that
a disturbance hits all alike. What runs all steps on all examples takes a share of them in each repeat, the others take all.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gat.attacks import Compute, LatentAttack
from gat.config import ConfigError, read_yaml
from gat.latents import Images, Latents, Rows, split, take
from gat.protocols import Renderer, Site, Task
from generators.stylegan2.generator import Activations, Kernel, StyledConv, Synthesis, ToRGB
from generators.stylegan2.layers import upsample
from generators.stylegan2.settings import StyleGAN2SpaceConfig
from generators.stylegan2.space import StyleGAN2Space
from tasks.classification import ClassificationTask
from tasks.datasets import DatasetConfig
from tasks.models import ModelConfig
from tasks.models.settings import ModelSettings

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = {"undefended": "original", "trained": "gat"}  # name here: name of the weights in the run's folder
AGREE_WITHIN = 0.01  # success rates of the two loops


# The straightforward loop ------------------------------------------------------------------------------------------------


def fused_convolution(
    x: Float[Tensor, "b i h w"],
    weight: Float[Tensor, "o i k k"],
    style: Float[Tensor, "b i"],
    demodulate: bool,
    up: bool = False,
) -> Float[Tensor, "b o h2 w2"]:
    """Modulation as it is usually implemented: one kernel per example, and all examples as groups of one convolution."""
    b, i, h, w = x.shape
    kernels = weight[None] * style[:, None, :, None, None]
    if demodulate:
        kernels = kernels * (kernels.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, b * i, h, w)
    if up:
        x = F.conv_transpose2d(x, kernels.transpose(1, 2).flatten(0, 1), stride=2, groups=b)
    else:
        x = F.conv2d(x, kernels.flatten(0, 1), padding=weight.shape[-1] // 2, groups=b)
    return x.reshape(b, -1, *x.shape[2:])


def render_fused(synthesis: Synthesis, latents: Latents) -> Images:
    """The whole synthesis network with fused modulation, in float32 (architecture 'skip')."""
    images: Tensor | None = None
    first = getattr(synthesis, f"b{synthesis.layers[0].resolution}")
    x = first.const.expand(len(latents[synthesis.layers[0].style_site]), -1, -1, -1)
    for layer in synthesis.layers:
        module, style = synthesis.module(layer), latents[layer.style_site]
        if isinstance(module, ToRGB):
            rgb = fused_convolution(x, module.weight, style * module.style_gain, demodulate=False)
            rgb = rgb + module.bias[:, None, None]
            fir = getattr(synthesis, f"b{layer.resolution}").resample_filter
            images = rgb if images is None else upsample(images, fir) + rgb
            continue
        assert isinstance(module, StyledConv)
        x = fused_convolution(x, module.weight, style, demodulate=True, up=module.up)
        if module.up:
            blur = (module.get_buffer("resample_filter") * 4).expand(x.shape[1], 1, -1, -1)
            x = F.conv2d(x, blur, padding=1, groups=x.shape[1])
        if module.use_noise:
            x = x + latents[layer.noise_site] * module.noise_strength
        x = F.leaky_relu(x + module.bias[:, None, None], 0.2) * 2**0.5
        if module.clamp is not None:
            x = x.clamp(-module.clamp, module.clamp)
    assert images is not None
    return (images * 0.5 + 0.5).clamp(0, 1)


@dataclass
class Found:
    """What came of some examples, in order: right before the attack, fooled by it, and the steps that took."""

    attacked: Bool[Tensor, " b"]
    success: Bool[Tensor, " b"]
    iterations: Int[Tensor, " b"]

    @classmethod
    def join(cls, parts: Iterable["Found"]) -> "Found":
        """One after the other."""
        columns = zip(*((part.attacked, part.success, part.iterations) for part in parts), strict=True)
        return cls(*map(torch.cat, columns))

    @property
    def success_rate(self) -> float:
        """Among those that were right before."""
        return float(self.success.sum() / self.attacked.sum().clamp(min=1))


def lockstep(
    task: Task,
    render: Callable[[Latents], Images],
    model: nn.Module,
    start: Latents,
    labels: Int[Tensor, "b ..."],
    attack: LatentAttack,
    sizes: Mapping[str, float],
    thrown_away: Sequence[nn.Module] = (),
) -> Found:
    """All examples take all sign steps together; each one's latents are kept when it first fools.

    Args:
        sizes: of the attack's steps, by site that moves.
        thrown_away: modules whose parameters get a gradient as well, by `loss.backward()`; empty: gradients of latents only.
    """
    home, still = split(start, list(sizes))
    moving = {name: value.clone().requires_grad_() for name, value in home.items()}
    kept = {name: value.clone() for name, value in home.items()}
    iterations, targets = torch.full([len(labels)], attack.max_steps), None
    fooled = torch.zeros(len(labels), dtype=torch.bool)
    for step in range(attack.max_steps + 1):
        outputs = model(render(still | moving))
        now = task.wrong(outputs, labels) & ~fooled
        iterations[now] = step
        for name, value in moving.items():
            kept[name][now] = value.detach()[now]
        fooled = fooled | now
        if step == 0:
            attacked = ~now
            if attack.goal == "least_likely":
                targets = task.least_likely(outputs, labels)
        if step == attack.max_steps:
            break
        loss = (task.loss(outputs, labels) if targets is None else -task.loss(outputs, targets)).sum()
        if thrown_away:
            for module in thrown_away:
                module.zero_grad()
            loss.backward()
            gradients = [value.grad for value in moving.values()]
        else:
            gradients = list(torch.autograd.grad(loss, list(moving.values())))
        with torch.no_grad():
            for (name, value), gradient in zip(moving.items(), gradients, strict=True):
                assert gradient is not None
                value += sizes[name] * gradient.sign()
                value.grad = None
    return Found(attacked, fooled & attacked, iterations)


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


@dataclass(eq=False)
class Variant:
    """One way to find the examples.

    Attributes:
        run: which examples -> what was found.
        shares: whether a repeat takes a share of the examples, or all.
        previous: the variant to which it adds one idea.
    """

    name: str
    run: Callable[[Int[Tensor, " b"]], Found]
    shares: bool = False
    previous: "Variant | None" = None
    found: dict[int, Found] = field(default_factory=dict)
    sec_per_example: list[float] = field(default_factory=list)

    def measure(self, n: int, repeat: int, repeats: int) -> None:
        """One timed repeat."""
        low, high = (n * repeat // repeats, n * (repeat + 1) // repeats) if self.shares else (0, n)
        begin = time.perf_counter()
        found = self.run(torch.arange(low, high))
        self.sec_per_example.append((time.perf_counter() - begin) / (high - low))
        self.found[low] = found

    @property
    def everything(self) -> Found:
        """Of all examples, in order."""
        return Found.join(found for _, found in sorted(self.found.items()))

    @property
    def examples_per_sec(self) -> float:
        """Adversarial examples."""
        return float(self.everything.success.float().mean()) / median(self.sec_per_example)

    @property
    def row(self) -> dict[str, Any]:
        """For the report."""
        found = self.everything
        ratio = self.examples_per_sec / self.previous.examples_per_sec if self.previous else None
        return {
            "name": self.name,
            "examples_per_sec": round(self.examples_per_sec, 2),
            "ratio_to_previous": ratio and round(ratio, 3),
            "success": round(found.success_rate, 4),
            "mean_iterations": round(float(found.iterations[found.attacked].float().mean()), 2),
        }


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


def matmul_flops_per_sec(dtype: torch.dtype, sides: Sequence[int] = (512, 1024)) -> float:
    """The fastest square matrix product seen: what this process can reach at most."""
    best = 0.0
    for side in sides:
        a, b = torch.ones(side, side, dtype=dtype), torch.ones(side, side, dtype=dtype)
        torch.mm(a, b)
        for _ in range(5):
            begin = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2 * side**3 / (time.perf_counter() - begin))
    return best


class FlopCount(TorchDispatchMode):
    """Floating point operations of all convolutions and matrix products inside, forward and backward.

    `FlopCounterMode` also attributes them to modules, by hooks that refuse gradients with respect to leaves.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def bench(
    task: ClassificationTask,
    classifiers: Mapping[str, nn.Module],
    spaces: Mapping[torch.dtype, StyleGAN2Space],
    attack: LatentAttack,
    n: int,
    width: int,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Measure everything.

    Args:
        classifiers: 'undefended' and 'trained'.
        spaces: the same generator in float32 and bfloat16.
        n: examples; `repeats` times the width at least, or the straightforward loop gets narrower batches.

    Returns:
        What `--json` prints, but for the machine.

    Raises:
        ValueError: for an attack that the straightforward loop does not do, or too few examples.
    """
    if n < repeats or repeats < 1:
        raise ValueError(f"need a repeat and an example for each at least, got n={n}, repeats={repeats}")
    check_attack(attack)
    peak = {dtype: matmul_flops_per_sec(dtype) for dtype in spaces}
    chosen = max(peak, key=peak.__getitem__)
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


def check_attack(attack: LatentAttack) -> None:
    """Refuses, with a ValueError, what `lockstep` does not do."""
    if attack.goal == "targeted" or attack.norm != "linf" or attack.eps or not attack.stop_when_fooled:
        raise ValueError(
            f"the straightforward loop takes unbounded sign steps, without targets, until fooled; got: {attack.summary}"
        )


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


def machine() -> dict[str, Any]:
    """What the numbers were measured on and with."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "threads": torch.get_num_threads(),
        "hardware": f"{cpu}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": commit,
        "command": " ".join(["python", *sys.argv]),
    }


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


def write_results(result: Mapping[str, Any], folder: Path, task: str = "classification") -> None:
    """`table.json`: the measurement, and the rows that every result of this project has."""
    shared = {
        "task": task,
        "attack": "gat",
        "protocol": result["attack"],
        "n": result["n"],
        "seeds": result["seeds"],
    }
    rows = []
    for model, name in (("original", "undefended"), ("gat", "trained")):
        values = {
            "throughput_ratio_to_straightforward": result[f"ratio_{name}"],
            "success_straightforward": result[f"success_{name}"]["straightforward"],
            "success_ours": result[f"success_{name}"]["ours"],
        }
        if f"peak_fraction_{name}" in result:
            values["peak_fraction"] = result[f"peak_fraction_{name}"]
        rows += [
            {**shared, "model": model, "metric": metric, "value": value, "low": None, "high": None}
            for metric, value in values.items()
        ]
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "table.json.tmp"
    temporary.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")
    os.replace(temporary, folder / "table.json")


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
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    parser.add_argument(
        "--out", type=Path, help="folder to write table.json into, such as results/bench_attack"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        task, classifiers, spaces, attack = open_run(args.run, args.checkpoint)
        result = (
            bench(task, classifiers, spaces, attack, args.n, args.width, args.repeats, args.seed) | machine()
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"bench_attack: {error}")
    if args.out:
        write_results(result, args.out)
    print(json.dumps(result, indent=1) if args.json else show(result))


if __name__ == "__main__":
    main()
