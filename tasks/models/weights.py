"""Weights from files, without executing anything in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tasks.models.errors import one_line
from tasks.models.normalized import Normalized

CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "state_dict_ema",
)  # where checkpoints keep the weights
WRAPPERS = ("module.", "_orig_mod.")  # prefixes that DistributedDataParallel and torch.compile leave

_COUNTER = ".num_batches_tracked"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads named tensors from a .safetensors file, or from a file of `torch.save` in any other name.

    The latter is read with `weights_only=True`, which refuses everything but tensors and plain containers. A
    checkpoint that keeps its weights one level down (`state_dict`, `model`, ...) is opened, and the prefixes
    of DDP and compile are dropped.

    Raises:
        ValueError: If there is no such file, it is damaged, or it holds something else.
    """
    path = path.expanduser()
    if not path.is_file():
        raise ValueError(f"weights: {path} {'is not a file' if path.exists() else 'does not exist'}")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"weights: {path} is not a complete safetensors file ({error})") from error
    except Exception as error:  # damaged files end in many exception types, refused ones in UnpicklingError
        raise ValueError(
            f"weights: {path} cannot be read without executing what is in it, or is damaged "
            f"({one_line(error)}); wanted .safetensors, or a torch file that holds only a state dict"
        ) from error
    if isinstance(content, Mapping) and (
        inside := [key for key in CONTAINERS if _holds_tensors(content.get(key))]
    ):
        content = content[inside[0]]
    if not _holds_tensors(content):
        found = f"keys {list(content)[:8]}" if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"weights: {path} holds no state dict: wanted names with tensors, at the top or under one of "
            f"{', '.join(CONTAINERS)}; got {found}"
        )
    weights = dict(content)
    for prefix in WRAPPERS * len(WRAPPERS):  # they nest in either order
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def load_weights(model: Normalized, path: Path, num_classes: int, ignored: Sequence[str] = ()) -> None:
    """Loads a file with the weights of the whole model, as this project saves them, or of its network alone.

    Args:
        num_classes: What `model` was built for, for the message.
        ignored: Prefixes of names that the file may have and the network lacks, such as auxiliary heads.

    Raises:
        ValueError: If names or shapes do not fit, or the file was made for another normalisation; nothing is
            loaded then.
    """
    weights = read_weights(path)
    whole = "mean" in weights and "std" in weights and any(name.startswith("network.") for name in weights)
    target = model if whole else model.network
    ignored = tuple(f"network.{prefix}" for prefix in ignored) if whole else tuple(ignored)
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(tuple(ignored))}
    own: dict[str, Tensor] = target.state_dict()
    # Counters of batch norms, which files of old PyTorch lack and nothing here reads.
    weights = {name: value for name, value in own.items() if name.endswith(_COUNTER)} | weights

    missing = [name for name in own if name not in weights]
    unknown = [name for name in weights if name not in own]
    if missing or unknown:
        raise ValueError(
            f"weights: {path} is of another model: it lacks {_some(missing)} and has {_some(unknown)} more. "
            "Build the model with the settings it was trained with"
        )
    different = [name for name, tensor in own.items() if tensor.shape != weights[name].shape]
    if different and all(_differ_in_classes(weights[name], own[name], num_classes) for name in different):
        theirs = len(weights[different[0]])
        raise ValueError(
            f"weights: {path} tells {theirs} classes apart, this task has {num_classes} "
            f"(see {_some(different)})"
        )
    if different:
        shapes = "; ".join(
            f"{name} is {list(weights[name].shape)}, wanted {list(own[name].shape)}" for name in different[:3]
        )
        raise ValueError(
            f"weights: {path} is of a model of another size: {shapes}. "
            "Build the model with the settings it was trained with"
        )
    if whole:
        for name in ("mean", "std"):
            wanted, got = (
                [round(value, 5) for value in tensors[name].flatten().tolist()] for tensors in (weights, own)
            )
            if wanted != got:
                raise ValueError(
                    f"weights: {path} was trained with {name} {wanted}, the model is built with {got}; set the "
                    f"model's {name} to the former"
                )
    target.load_state_dict(weights)


def _holds_tensors(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _differ_in_classes(theirs: Tensor, ours: Tensor, num_classes: int) -> bool:
    return (
        ours.ndim > 0
        and theirs.ndim == ours.ndim
        and len(ours) == num_classes
        and theirs.shape[1:] == ours.shape[1:]
    )


def _some(names: Sequence[str]) -> str:
    """'nothing', or the first few and how many more."""
    if not names:
        return "nothing"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
