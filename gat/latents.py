"""Named tensors that become an image, and the few things one does with them.

`Latents` is a flat dict, read like a `state_dict`. A name is `kind/resolution/layer`, for example `style/16/conv0`; images that
are attacked directly are `{"pixels": ...}`. Every tensor's first axis is the example. Merge with `moved | kept`.

Letters in shape annotations, everywhere in this project: b examples, c channels, h w pixels, k classes.
"""

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Latents = dict[str, Float[Tensor, "..."]]
Images = Float[Tensor, "b c h w"]  # RGB in [0, 1]
PerExample = Float[Tensor, " b"]
Verdicts = Bool[Tensor, " b"]
Rows = Int[Tensor, " b"]  # indices of examples


def select(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match any of the globs, in the order of `names`.

    Raises:
        ValueError: if a pattern matches nothing; it lists what there is.
    """
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            near = get_close_matches(pattern, names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"no latent matches {pattern!r}; {hint}on offer: {', '.join(names)}")
        chosen.update(matches)
    return [name for name in names if name in chosen]


def lookup(table: Mapping[str, float], name: str) -> float | None:
    """The value of the last glob in `table` that matches `name` (so later entries refine earlier ones); None if none does."""
    value = None
    for pattern, candidate in table.items():
        if fnmatchcase(name, pattern):
            value = candidate
    return value


def split(latents: Latents, names: Iterable[str]) -> tuple[Latents, Latents]:
    """The named ones and the others."""
    chosen = set(names)
    missing = chosen - latents.keys()
    if missing:
        raise ValueError(f"no latent named {sorted(missing)}; on offer: {', '.join(latents)}")
    return (
        {name: value for name, value in latents.items() if name in chosen},
        {name: value for name, value in latents.items() if name not in chosen},
    )


def take(latents: Latents, rows: Tensor) -> Latents:
    """Examples `rows` of every latent, as copies."""
    return {name: value.index_select(0, rows) for name, value in latents.items()}


def num_examples(latents: Latents) -> int:
    """The common length of the first axis.

    Raises:
        ValueError: if there is no latent or the lengths differ.
    """
    lengths = {name: len(value) for name, value in latents.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"latents need one common number of examples, got {lengths or 'no latents at all'}")
    return next(iter(lengths.values()))


def _mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The finaliser of SplitMix64 (Steele et al. 2014) on int64 tensors, whose products wrap as it needs."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x


def seeded_uniform(seed: int, ids: Rows, shape: tuple[int, ...], stream: str = "") -> Float[Tensor, "b ..."]:
    """Uniform numbers in (0, 1) that depend on (seed, id, stream) alone, whatever batch or process an example is in.

    Counter-based, so it needs no loop over examples, no generator state, and gives the same numbers on every device.

    Args:
        ids: of the examples.
        shape: of one example.
        stream: name of an independent sequence for the same example.
    """
    key = seed
    for character in stream:
        key = (key * 1_000_003 + ord(character)) % 2**62
    size = math.prod(shape)
    golden = -0x61C8864680B583EB
    start = _mix(_mix(ids.long() * golden + key) + key)
    counter = torch.arange(1, size + 1, device=ids.device) * golden
    bits = _mix(start[:, None] + counter[None, :])
    return (
        ((((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) / 2**53)
        .float()
        .clamp(1e-7, 1 - 1e-7)
        .reshape(-1, *shape)
    )


def seeded_normal(seed: int, ids: Rows, shape: tuple[int, ...], stream: str = "") -> Float[Tensor, "b ..."]:
    """Standard normal numbers with the guarantees of `seeded_uniform`."""
    return torch.special.ndtri(seeded_uniform(seed, ids, shape, stream).double()).float()


def per_example(value: Shaped[Tensor, " b"], like: Float[Tensor, "b ..."]) -> Shaped[Tensor, "b ..."]:
    """`value` with trailing axes of length one, to broadcast over each example of `like`."""
    return value.reshape(-1, *[1] * (like.ndim - 1))
