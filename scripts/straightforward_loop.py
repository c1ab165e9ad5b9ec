"""The loop one would write first, which the benchmarks compare with: all examples take all steps together.

`bench_attack.py` renders StyleGAN2 in it with fused modulation, `bench_scenes.py` SPADE from the label map.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gat.attacks import LatentAttack
from gat.latents import Images, Latents, split
from gat.protocols import Task
from generators.stylegan2.generator import StyledConv, Synthesis, ToRGB
from generators.stylegan2.layers import upsample


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


def check_attack(attack: LatentAttack) -> None:
    """Refuses, with a ValueError, what `lockstep` does not do."""
    beyond_it = (
        attack.goal in ("targeted", "random"),
        attack.contrast,
        attack.norm != "linf",
        attack.pixels != "alike",
        bool(attack.eps),
        not attack.stop_when_fooled,
    )
    if any(beyond_it):
        raise ValueError(
            "the straightforward loop takes unbounded sign steps, without targets, until fooled, with all pixels alike; got: "
            + attack.summary
        )
