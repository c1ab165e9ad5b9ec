"""A checkpoint in memory, and how foreign tensors become one: what names and shapes say, and whether it all fits."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from generators.stylegan2.checkpoints.restricted_pickle import shown
from generators.stylegan2.config import StyleGAN2Config
from generators.stylegan2.discriminator import Discriminator
from generators.stylegan2.generator import Generator

Claims = Mapping[str, Any]  # values for fields of StyleGAN2Config
Network = Literal["generator", "discriminator"]
NETWORKS: dict[str, type[Generator] | type[Discriminator]] = {
    "generator": Generator,
    "discriminator": Discriminator,
}

DEFAULT_RULE = (
    StyleGAN2Config.model_fields["channel_base"].default,
    StyleGAN2Config.model_fields["channel_max"].default,
)


@dataclass(frozen=True)
class Checkpoint:
    """A StyleGAN2 as read from a file; names, shapes and config are known to fit each other.

    Attributes:
        config: builds `Generator(config)` and, if it is there, `Discriminator(config)`.
        generator: float32 state dict, the averaged generator (G_ema) where the file has one; loads with `strict=True`.
        discriminator: likewise, or None if the file has none or one that the config cannot express.
        metadata: where it came from: `source_format`, `source_file`, `source_sha256`, `license` and notes.
    """

    config: StyleGAN2Config
    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor] | None
    metadata: dict[str, str]


def assemble(
    generator: Mapping[str, Tensor],
    generator_sources: Mapping[str, Claims],
    discriminator: Mapping[str, Tensor] | None,
    discriminator_sources: Mapping[str, Claims],
    metadata: Mapping[str, str],
) -> Checkpoint:
    """Joins what a reader found. A discriminator that does not fit is left out, with the reason in the metadata, because
    attacks and sampling do not need it; a generator that does not fit is an error.

    Args:
        generator: tensors by official name.
        generator_sources: what each source of information says about the config, see `settle`.
        discriminator: likewise, or None.
        discriminator_sources: likewise; may not contradict the generator's.
        metadata: passed on.

    Raises:
        ValueError: sources contradict each other, or the generator's tensors do not fit the config.
    """
    stored: dict[str, Any] = {}
    for claims in generator_sources.values():
        stored |= claims
    sources = {"its tensors": generator_claims(generator, stored), **generator_sources}
    config = settle(sources)
    fitted = check_fit(add_filters(generator, config, "generator"), config, "generator")
    notes = dict(metadata)
    if discriminator is None:
        return Checkpoint(config, fitted, None, notes)
    try:
        shapes = {"the discriminator's tensors": discriminator_claims(discriminator)}
        full = settle(sources | shapes | dict(discriminator_sources))
        fitted_discriminator = check_fit(
            add_filters(discriminator, full, "discriminator"), full, "discriminator"
        )
    except ValueError as error:
        return Checkpoint(config, fitted, None, notes | {"discriminator": f"left out: {error}"})
    return Checkpoint(full, fitted, fitted_discriminator, notes)


def _fir() -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"this is not a StyleGAN2: there is no tensor {name!r}, only {_some(tensors)}")
    return tuple(tensors[name].shape)


def _some(names: Iterable[str], limit: int = 5) -> str:
    listed = sorted(names)
    more = f", ... ({len(listed)} in all)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more if listed else "none"


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return sum(bool(re.fullmatch(re.escape(prefix) + r"\d{1,3}\.weight", name)) for name in tensors)


def _resolutions(tensors: Mapping[str, Tensor], pattern: str) -> list[int]:
    found = sorted({int(m[1]) for name in tensors if (m := re.fullmatch(pattern, name))})
    if not found or found != [4 * 2**k for k in range(len(found))]:
        raise ValueError(
            f"this is not a StyleGAN2: wanted blocks b4, b8, b16, ..., found resolutions {found}"
        )
    return found


def _channel_rule(channels: Mapping[int, int], stored: Claims) -> dict[str, int]:
    """channel_base and channel_max, which shapes fix only up to a range: the stored pair if it fits, else the smallest."""
    smallest = max(r * n for r, n in channels.items()), max(channels.values())
    told = stored.get("channel_base", DEFAULT_RULE[0]), stored.get("channel_max", DEFAULT_RULE[1])
    for base, limit in (told, smallest):
        if (
            type(base) is int
            and type(limit) is int
            and all(min(base // r, limit) == n for r, n in channels.items())
        ):
            return {"channel_base": base, "channel_max": limit}
    raise ValueError(
        f"channels per resolution {dict(channels)} do not follow min(channel_base // resolution, channel_max)"
    )


def generator_claims(tensors: Mapping[str, Tensor], stored: Claims) -> dict[str, Any]:
    """What names and shapes alone say about the config of a generator (in official names).

    Args:
        tensors: the state dict, possibly without its constant filters.
        stored: claims from elsewhere, consulted only to choose among channel rules that fit equally well.
    """
    resolutions = _resolutions(tensors, r"synthesis\.b(\d{1,5})\.conv1\.weight")
    top = resolutions[-1]
    channels = {r: _shape(tensors, f"synthesis.b{r}.conv1.weight")[0] for r in resolutions}
    w_dim = _shape(tensors, "synthesis.b4.conv1.affine.weight")[1]
    embed, c_dim = _shape(tensors, "mapping.embed.weight") if "mapping.embed.weight" in tensors else (0, 0)
    layers = _count(tensors, "mapping.fc")
    hidden, mapping_in = _shape(tensors, "mapping.fc0.weight")
    claims: dict[str, Any] = {
        "z_dim": mapping_in - embed,
        "c_dim": c_dim,
        "w_dim": w_dim,
        "img_resolution": top,
        "img_channels": _shape(tensors, f"synthesis.b{top}.torgb.weight")[0],
        "mapping_layers": layers,
        "use_noise": "synthesis.b4.conv1.noise_strength" in tensors,
        **_channel_rule(channels, stored),
    }
    # Said only where it leaves a trace in the tensors.
    if top > 4:
        is_resnet, is_skip = "synthesis.b8.skip.weight" in tensors, "synthesis.b4.torgb.weight" in tensors
        claims["architecture"] = "resnet" if is_resnet else "skip" if is_skip else "orig"
    if layers > 1:
        claims["mapping_features"] = hidden
    if c_dim:
        claims["embed_features"] = embed
    return claims


def discriminator_claims(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What names and shapes alone say about the discriminator's part of the config."""
    top = max(
        (int(m[1]) for name in tensors if (m := re.fullmatch(r"b(\d{1,5})\.conv0\.weight", name))), default=4
    )
    is_resnet, is_skip = f"b{top}.skip.weight" in tensors, "b4.fromrgb.weight" in tensors
    out_channels, in_channels = _shape(tensors, "b4.conv.weight")[:2]
    claims: dict[str, Any] = {
        "discriminator_architecture": "resnet" if is_resnet else "skip" if is_skip else "orig",
        "mbstd_channels": in_channels - out_channels,
    }
    if "mapping.embed.weight" in tensors:
        claims["discriminator_mapping_layers"] = _count(tensors, "mapping.fc")
    return claims


def claims_of_arguments(
    arguments: Any,
    fields: Mapping[str, str],
    fixed: Mapping[str, tuple[Any, ...]],
    irrelevant: Iterable[str],
    owner: str,
) -> dict[str, Any]:
    """Config claims from the arguments with which a network of somebody else was built.

    Args:
        arguments: as stored in the file.
        fields: the config field that each argument sets.
        fixed: arguments of which our networks know only these values.
        irrelevant: arguments that do not change what the network computes in float32.
        owner: what was built with them, for messages.

    Raises:
        ValueError: an argument that is in none of these, or a value that our networks cannot do.
    """
    if not isinstance(arguments, dict):
        raise ValueError(f"{owner}'s arguments are a {type(arguments).__name__} instead of a dict")
    claims = {}
    for name, value in arguments.items():
        if name in fixed:
            if value not in fixed[name]:
                raise ValueError(
                    f"{owner} was built with {name}={shown(value)}; supported is {fixed[name][0]!r}"
                )
        elif name in fields:
            if not (value is None or isinstance(value, str | int | float)):
                raise ValueError(f"{owner} was built with {name} set to a {type(value).__name__}")
            claims[fields[name]] = value
        elif name not in irrelevant:
            raise ValueError(f"{owner} was built with an argument that no supported StyleGAN2 has: {name!r}")
    return claims


_NONE_MEANS_W_DIM = ("mapping_features", "embed_features")


def settle(sources: Mapping[str, Claims]) -> StyleGAN2Config:
    """One config from several sources, which must not contradict each other.

    Args:
        sources: claims by where they come from ("its tensors", "its stored arguments", ...).

    Raises:
        ValueError: two sources disagree (both are named), or the settled values are impossible.
    """
    agreed: dict[str, Any] = {}
    origin: dict[str, str] = {}
    w_dim = next((claims["w_dim"] for claims in sources.values() if "w_dim" in claims), None)
    for source, claims in sources.items():
        for name, value in claims.items():
            if name in _NONE_MEANS_W_DIM and value in (None, w_dim):
                value = None
            if name in agreed and agreed[name] != value:
                raise ValueError(
                    f"{origin[name]} say {name}={agreed[name]!r}, but {source} say {name}={value!r}"
                )
            agreed[name], origin[name] = value, source
    try:
        return StyleGAN2Config(**agreed)
    except ValidationError as error:
        raise ValueError(f"this StyleGAN2 cannot be built here: {error}") from None


def add_filters(
    tensors: Mapping[str, Tensor], config: StyleGAN2Config, network: Network
) -> dict[str, Tensor]:
    """The tensors with the constant [1, 3, 3, 1] filters that formats other than NVIDIA's PyTorch one do not store."""
    names = (name for name in expected_shapes(config, network) if name.endswith("resample_filter"))
    return {name: _fir() for name in names} | dict(tensors)


def expected_shapes(config: StyleGAN2Config, network: Network) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `generator` or `discriminator` of this config has."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in NETWORKS[network](config).state_dict().items()}


def check_fit(tensors: Mapping[str, Tensor], config: StyleGAN2Config, network: Network) -> dict[str, Tensor]:
    """The tensors as float32, in the network's own order.

    Raises:
        ValueError: names or shapes are not those of the config's network, or a tensor is not of floating point.
    """
    expected = expected_shapes(config, network)
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        raise ValueError(
            f"the {network} does not fit its config: missing {_some(missing)}; unknown {_some(extra)}"
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"the {network}'s tensor {name} has shape {list(tensors[name].shape)}, its config says {list(shape)}"
            )
        if not tensors[name].is_floating_point():
            raise ValueError(
                f"the {network}'s tensor {name} has type {tensors[name].dtype}, wanted floating point"
            )
        # Numbers that only resemble the filter would change every image without any error.
        if name.endswith("resample_filter") and not torch.allclose(tensors[name].float(), _fir()):
            raise ValueError(
                f"the {network}'s {name} is not the [1, 3, 3, 1] low-pass filter that this code applies"
            )
    return {name: tensors[name].float().contiguous() for name in expected}
