"""StyleGAN2 pickles of NVIDIA's PyTorch repositories (stylegan2-ada-pytorch, and stylegan3's StyleGAN2) and of their forks.

Such a file is a dict {G, D, G_ema, augment_pipe, training_set_kwargs} of persistent objects: class name, source text of
the defining module (upstream executes it; here it is dropped unread) and the module's `__dict__`. Parameters, buffers and
children hang in `_parameters`, `_buffers`, `_modules`, so that joining their names gives the state dict. Layout: read in
torch_utils/persistence.py of both repositories, and checked on files that the official code wrote.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from generators.stylegan2.checkpoints.layout import Checkpoint, assemble, claims_of_arguments
from generators.stylegan2.checkpoints.restricted_pickle import LazyTensor, Record, RefusedPickle

LICENSE = (
    "Inherited from the source file. Networks published by NVIDIA are under the NVIDIA Source Code License: "
    "non-commercial use, research or evaluation, only; that also holds for this converted copy."
)
MAX_TENSORS = 10_000  # a 1024-pixel generator has 173

# Constructor arguments, wherever they are nested, and the config field that each sets.
_GENERATOR_FIELDS = {
    "z_dim": "z_dim", "c_dim": "c_dim", "w_dim": "w_dim",
    "img_resolution": "img_resolution", "img_channels": "img_channels",
}  # fmt: skip
_MAPPING_FIELDS = {
    "num_layers": "mapping_layers", "embed_features": "embed_features", "layer_features": "mapping_features",
    "lr_multiplier": "mapping_lr_multiplier", "w_avg_beta": "w_avg_beta",
}  # fmt: skip
_SYNTHESIS_FIELDS = {
    "channel_base": "channel_base", "channel_max": "channel_max", "architecture": "architecture",
    "conv_clamp": "conv_clamp", "use_noise": "use_noise",
}  # fmt: skip
_DISCRIMINATOR_FIELDS = {
    "c_dim": "c_dim", "img_resolution": "img_resolution", "img_channels": "img_channels",
    "channel_base": "channel_base", "channel_max": "channel_max", "conv_clamp": "conv_clamp",
    "architecture": "discriminator_architecture",
}  # fmt: skip
_EPILOGUE_FIELDS = {"mbstd_group_size": "mbstd_group_size", "mbstd_num_channels": "mbstd_channels"}
# Arguments of which our networks know one value only.
_FIXED: dict[str, tuple[Any, ...]] = {
    "activation": ("lrelu",),
    "resample_filter": ([1, 3, 3, 1], (1, 3, 3, 1)),
    "kernel_size": (3,),
}
# Arguments that change speed, precision or training, but not what the network computes in float32.
_IRRELEVANT = {"num_fp16_res", "use_fp16", "fp16_channels_last", "fused_modconv_default", "freeze_layers"}


def _rename(arguments: Any, fields: Mapping[str, str], owner: str) -> dict[str, Any]:
    return claims_of_arguments(arguments, fields, _FIXED, _IRRELEVANT, owner)


def generator_claims_of_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Config claims from the constructor arguments of an official Generator, nested (ADA) or flattened (StyleGAN3's)."""
    rest = dict(kwargs)
    mapping = rest.pop("mapping_kwargs", {})
    synthesis = rest.pop("synthesis_kwargs", {})
    claims = _rename(rest, _GENERATOR_FIELDS | _SYNTHESIS_FIELDS, "the generator")
    claims |= _rename(synthesis, _SYNTHESIS_FIELDS, "the synthesis network")
    return claims | _rename(mapping, _MAPPING_FIELDS, "the mapping network")


def discriminator_claims_of_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Config claims from the constructor arguments of an official Discriminator."""
    rest = dict(kwargs)
    nested = {name: rest.pop(name, {}) for name in ("block_kwargs", "mapping_kwargs", "epilogue_kwargs")}
    if not isinstance(nested["mapping_kwargs"], dict):
        raise ValueError("the discriminator's mapping_kwargs are not a dict")
    if rest.get("cmap_dim") is None:
        rest.pop("cmap_dim", None)  # the default: as many as channels at 4x4
    mapping = {name: value for name, value in nested["mapping_kwargs"].items() if value is not None}
    if mapping.get("num_layers") == 0 or mapping.get("lr_multiplier") == 0.01:
        mapping.pop("lr_multiplier", None)  # without layers it does nothing; 0.01 is what ours has
    claims = _rename(rest, _DISCRIMINATOR_FIELDS, "the discriminator")
    _rename(nested["block_kwargs"], {}, "the discriminator's blocks")
    claims |= _rename(
        mapping, {"num_layers": "discriminator_mapping_layers"}, "the discriminator's mapping network"
    )
    return claims | _rename(nested["epilogue_kwargs"], _EPILOGUE_FIELDS, "the discriminator's epilogue")


def _modules(root: Record) -> dict[str, Record]:
    """Every module below `root` by its path, as `named_modules` would list them."""
    modules: dict[str, Record] = {}
    pending: list[tuple[tuple[str, ...], Record]] = [((), root)]
    for _ in range(MAX_TENSORS):
        if not pending:
            return modules
        path, record = pending.pop()
        modules[".".join(path)] = record
        children = record.state.get("_modules", {})
        for name, child in children.items() if isinstance(children, dict) else ():
            if isinstance(child, Record) and isinstance(name, str):
                pending.append(((*path, name), child))
    raise ValueError("more modules than any StyleGAN2 has; does the file contain itself?")


def _state_dict(modules: Mapping[str, Record]) -> dict[str, LazyTensor]:
    tensors = {}
    for path, record in modules.items():
        hidden = record.state.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            members = record.state.get(group, {})
            for name, tensor in members.items() if isinstance(members, dict) else ():
                if isinstance(tensor, LazyTensor) and not (isinstance(hidden, set) and name in hidden):
                    tensors[f"{path}.{name}" if path else str(name)] = tensor
    return tensors


def _decode(tensors: Mapping[str, LazyTensor], file_bytes: int) -> dict[str, Tensor]:
    """The tensors, unless they are more than the file can hold (many views of one storage would fill the memory)."""
    total = sum(tensor.num_elements for tensor in tensors.values())
    if len(tensors) > MAX_TENSORS or total > file_bytes:
        raise ValueError(
            f"{len(tensors)} tensors of {total} numbers do not come from a file of {file_bytes} bytes"
        )
    return {name: tensor.decode() for name, tensor in tensors.items()}


def _init_kwargs(record: Record, positional: tuple[str, ...]) -> dict[str, Any]:
    args, kwargs = record.state.get("_init_args", ()), record.state.get("_init_kwargs", {})
    if not (isinstance(args, tuple) and isinstance(kwargs, dict)):
        raise ValueError(f"the {record.class_name}'s stored constructor arguments are not a tuple and a dict")
    return dict(zip(positional, args, strict=False)) | kwargs


def _attributes(record: Record | None, fields: Mapping[str, str]) -> dict[str, Any]:
    """Config claims from what a module carries at run time; versions differ in defaults, attributes do not lie."""
    state = record.state if record else {}
    return _rename(
        {name: state[name] for name in (*fields, "activation") if name in state}, fields, "a layer"
    )


def is_nvidia(data: Any) -> bool:
    """Whether unpickled data looks like a pickle of NVIDIA's PyTorch code."""
    return isinstance(data, dict) and any(isinstance(data.get(key), Record) for key in ("G_ema", "G"))


def from_data(data: Mapping[str, Any], file_bytes: int, metadata: Mapping[str, str]) -> Checkpoint:
    """The checkpoint in the unpickled dict.

    Args:
        data: from `restricted_pickle.load`.
        file_bytes: size of the file, an upper bound for what its tensors can hold.
        metadata: passed on; format, licence and notes are added.

    Raises:
        ValueError: it is a StyleGAN3 or something else, is built with features that we do not have, or contradicts itself.
    """
    which = "G_ema" if isinstance(data.get("G_ema"), Record) else "G"
    record = data[which]
    modules = _modules(record)
    if "synthesis.input" in modules:
        raise ValueError(
            "this is a StyleGAN3 (alias-free) generator; readable are StyleGAN2 networks: pickles of stylegan2-ada-pytorch, "
            "of stylegan3 with --cfg=stylegan2, of the TensorFlow StyleGAN2, and rosinality's .pt"
        )
    if record.class_name != "Generator" or not {"mapping", "synthesis"} <= modules.keys():
        raise ValueError(
            f"wanted a Generator of mapping and synthesis under {which!r}, found a {record.class_name} of "
            f"{', '.join(name for name in modules if name and '.' not in name) or 'nothing'}"
        )
    arguments = _init_kwargs(record, ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"))
    sources = {
        "its layers": _attributes(modules.get("synthesis.b4.conv1"), {"conv_clamp": "conv_clamp"})
        | _attributes(modules.get("mapping"), {"w_avg_beta": "w_avg_beta"})
        | _attributes(modules.get("mapping.fc0"), {"bias_gain": "mapping_lr_multiplier"}),
        "its stored arguments": generator_claims_of_kwargs(arguments),
    }
    notes = dict(metadata) | {"source_format": "NVIDIA PyTorch pickle", "network": which, "license": LICENSE}

    discriminator: dict[str, Tensor] | None = None
    discriminator_sources: dict[str, dict[str, Any]] = {}
    if isinstance(data.get("D"), Record):
        try:
            d_modules = _modules(data["D"])
            discriminator_sources = {
                "the discriminator's layers": _attributes(
                    d_modules.get("b4.mbstd"),
                    {"group_size": "mbstd_group_size", "num_channels": "mbstd_channels"},
                )
                | _attributes(d_modules.get("b4.conv"), {"conv_clamp": "conv_clamp"}),
                "the discriminator's stored arguments": discriminator_claims_of_kwargs(
                    _init_kwargs(data["D"], ("c_dim", "img_resolution", "img_channels"))
                ),
            }
            discriminator = _decode(_state_dict(d_modules), file_bytes)
        except RefusedPickle:
            raise
        except ValueError as error:
            notes["discriminator"] = f"left out: {error}"
    return assemble(
        _decode(_state_dict(modules), file_bytes), sources, discriminator, discriminator_sources, notes
    )
