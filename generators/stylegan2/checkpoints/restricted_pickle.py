"""Read the data out of a pickle without running anything in it.

A pickle is a program: its opcodes name functions, call them, and hand state to objects. A subclass of `pickle.Unpickler`
with a strict `find_class` still calls whatever that method returns, and `BUILD` still sets attributes on it, so its safety
hangs on the manners of every listed callable. This reader is the other kind: a small machine of our own over
`pickletools.genops` (which decodes opcodes and does nothing else). No callable and no class of the file is ever on its
stack. A name pushes a `Name`, which is a string; "calling" it looks the string up in `CONSTRUCTORS`, whose entries turn
plain arguments into plain data; a name that is not in that table, and any opcode that the known writers do not emit, ends
the reading with a `RefusedPickle` that says which one it was and where.

Tensors stay encoded until `LazyTensor.decode`. Their bytes are a second pickle (torch's pre-2020 format), which upstream
opens with `weights_only=False`; here it first passes the same machine, which also compares every announced size with the
bytes that are there, and only then goes to `torch.load(weights_only=True)`.
"""

import argparse
import io
import mmap
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class RefusedPickle(ValueError):
    """The file asks for something outside the allow-list, or is not a well-formed file of its kind."""


@dataclass(frozen=True)
class Name:
    """A dotted name that the file mentions. Never resolved to an object."""

    dotted: str


@dataclass
class Record:
    """What is left of an object of a known class: the class's name and the state that was to be given to it."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StorageBytes:
    """The encoded bytes of one tensor storage."""

    data: bytes


@dataclass(frozen=True)
class StorageReference:
    """A storage that lies outside the pickle (torch's own file formats)."""

    key: str
    num_bytes: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor's geometry and its still encoded storage."""

    storage: StorageBytes | StorageReference
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return prod(self.size)

    def decode(self) -> Tensor:
        """Returns: a contiguous CPU tensor of its own.

        Raises:
            RefusedPickle: the storage holds a foreign name, or is smaller than announced.
        """
        if isinstance(self.storage, StorageReference):
            raise RefusedPickle("a tensor refers to a storage outside of the file")
        storage = _decode_storage(self.storage.data)
        reach = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if self.num_elements > storage.numel() or (self.num_elements and reach >= storage.numel()):
            raise RefusedPickle(
                f"a tensor of shape {list(self.size)}, stride {list(self.stride)}, offset {self.offset} does not fit "
                f"into its storage of {storage.numel()} elements"
            )
        return storage.as_strided(self.size, self.stride, self.offset).clone(
            memory_format=torch.contiguous_format
        )


@dataclass
class LazyDtype:
    """A plain numeric numpy dtype."""

    code: str


@dataclass
class LazyArray:
    """A numeric numpy array, filled by the BUILD opcode."""

    array: np.ndarray | None = None


def _is_size(value: Any) -> bool:
    """A tuple of non-negative ints, as shapes and strides are."""
    return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise RefusedPickle(f"malformed pickle: {what}")


def shown(value: Any) -> str:
    """A value of the file for a message: never long, never a walk through nested data."""
    simple = value is None or isinstance(value, str | int | float)
    if isinstance(value, list | tuple) and len(value) <= 8:
        simple = all(isinstance(item, str | int | float) for item in value)
    return repr(value)[:60] if simple else f"a {type(value).__name__}"


def _persistent_object(meta: Any) -> Record:
    """torch_utils.persistence: keeps the class name and the state; the embedded source text is dropped unread."""
    _expect(isinstance(meta, dict), "a persistent object without its description")
    kind, version = meta.get("type"), meta.get("version")
    if kind != "class" or version != 6:
        raise RefusedPickle(
            f"persistent object of type {shown(kind)}, version {shown(version)}: "
            "wanted 'class', 6 (as stylegan2-ada-pytorch and stylegan3 write)"
        )
    name, state = meta.get("class_name"), meta.get("state")
    _expect(
        isinstance(name, str) and isinstance(state, dict), "a persistent object without class name or state"
    )
    return Record(name, dict(state))


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    _expect(isinstance(items, list | tuple), "OrderedDict with an argument that is not a list of pairs")
    result: dict[Any, Any] = {}
    for pair in items:
        _expect(
            isinstance(pair, list | tuple) and len(pair) == 2,
            "OrderedDict with an argument that is not pairs",
        )
        _set_item(result, *pair)
    return result


def _set(items: Any = ()) -> set[Any]:
    _expect(isinstance(items, list | tuple), "a set that is not made from a list")
    for item in items:
        _expect_key(item)
    return set(items)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_flags_and_hooks: Any) -> LazyTensor:
    _expect(isinstance(storage, StorageBytes | StorageReference), "a tensor without a storage")
    _expect(type(offset) is int and offset >= 0, "a tensor with an impossible offset")
    _expect(
        _is_size(size) and _is_size(stride) and len(size) == len(stride), "a tensor with an impossible shape"
    )
    return LazyTensor(storage, offset, size, stride)


def _parameter(data: Any, *_flags_and_hooks: Any) -> LazyTensor:
    _expect(isinstance(data, LazyTensor), "a parameter that is not a tensor")
    return data


def _storage(data: Any) -> StorageBytes:
    _expect(isinstance(data, bytes), "a tensor storage that is not bytes")
    return StorageBytes(data)


def _encode(text: Any, encoding: Any) -> bytes:
    _expect(
        isinstance(text, str) and encoding in ("latin1", "latin-1"), "a byte string in an unknown encoding"
    )
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    return b""  # protocol 2 has no other way to write it


def _numpy_dtype(code: Any, *_flags: Any) -> LazyDtype:
    if not (isinstance(code, str) and re.fullmatch(r"[<>=|]?(b1|[iu][1248]|f[248])", code)):
        raise RefusedPickle(f"refused the numpy dtype {shown(code)}: only plain numbers are read")
    return LazyDtype(code)


def _numpy_array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    _expect(
        isinstance(data, bytes | bytearray) and isinstance(dtype, LazyDtype),
        "a numpy array without data or dtype",
    )
    _expect(_is_size(shape), "a numpy array with an impossible shape")
    numpy_dtype = np.dtype(dtype.code)
    if prod(shape) * numpy_dtype.itemsize != len(data):
        raise RefusedPickle(
            f"a numpy array of shape {list(shape)}, {dtype.code} cannot be made from {len(data)} bytes"
        )
    return np.frombuffer(data, numpy_dtype).reshape(shape, order="F" if order == "F" else "C").copy()


def _numpy_from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_axes: Any) -> LazyArray:
    return LazyArray(_numpy_array(data, dtype, shape, order))


def _numpy_scalar(dtype: Any, data: Any = b"") -> int | float | bool:
    return _numpy_array(data, dtype, (), "C").item()


def _numpy_reconstruct(*_subtype_shape_code: Any) -> LazyArray:
    return LazyArray()


# Every name that may occur, with what is made of it. Sources: the pickle writers of stylegan2-ada-pytorch and stylegan3
# (torch_utils.persistence), of the TensorFlow repositories (dnnlib.tflib), and of rosinality's train.py (torch.save).
CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "dnnlib.util.EasyDict": _ordered_dict,
    "dnnlib.tflib.network.Network": lambda: Record("Network"),
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _numpy_reconstruct,
    "numpy._core.multiarray._reconstruct": _numpy_reconstruct,
    "numpy.core.numeric._frombuffer": _numpy_from_buffer,
    "numpy._core.numeric._frombuffer": _numpy_from_buffer,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _empty_bytes,
}
INERT_NAMES = {"numpy.ndarray"}  # mentioned as an argument, never called
STORAGE_ITEM_BYTES = {
    "torch.DoubleStorage": 8, "torch.FloatStorage": 4, "torch.HalfStorage": 2, "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8, "torch.IntStorage": 4, "torch.ShortStorage": 2, "torch.CharStorage": 1,
    "torch.ByteStorage": 1, "torch.BoolStorage": 1,
}  # fmt: skip
# The option parser's result, which some training scripts store beside the weights.
TORCH_FILE_CONSTRUCTORS = CONSTRUCTORS | {"argparse.Namespace": lambda: Record("Namespace")}


def _expect_key(key: Any) -> None:
    # Hashing a deep tuple overflows the C stack, and nothing that we read has such keys.
    _expect(key is None or isinstance(key, str | int | float | bytes), f"a {type(key).__name__} as a key")


def _set_item(target: Any, key: Any, value: Any) -> None:
    _expect(isinstance(target, dict), f"an item set on a {type(target).__name__}")
    _expect_key(key)
    target[key] = value


def _build(target: Any, state: Any) -> Any:
    """The BUILD opcode, for the few records that have one. `__setstate__` of anything does not exist here."""
    match target, state:
        case Record(), dict():
            target.state = state
        case dict(), dict() | None:
            pass  # attributes of a dict, such as the version notes of a state_dict
        case LazyDtype(), tuple():
            order, is_plain = state[1], all(part is None for part in state[2:5])
            if order not in ("<", ">", "|", "=") or not is_plain:
                raise RefusedPickle("refused a structured numpy dtype: only plain numbers are read")
            target.code = order + target.code.lstrip("<>=|")
        case LazyArray(), (int(), shape, dtype, fortran, data):
            target.array = _numpy_array(data, dtype, shape, "F" if fortran else "C")
        case _:
            raise RefusedPickle(f"refused the opcode BUILD on a {type(target).__name__}")
    return target


_MARK = object()
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_DATA = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Runs one pickle's opcodes over plain data."""

    def __init__(
        self, constructors: Mapping[str, Callable[..., Any]], storages: dict[str, int] | None
    ) -> None:
        self.constructors = constructors
        self.storages = (
            storages  # bytes announced per storage key; None: the stream may not refer to storages
        )
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BufferedIOBase | mmap.mmap) -> Any:
        for opcode, argument, position in pickletools.genops(stream):  # type: ignore[arg-type]
            try:
                self.step(opcode.name, argument)
            except RefusedPickle as error:
                raise RefusedPickle(f"{error} (opcode {opcode.name} at byte {position})") from None
            except (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                raise RefusedPickle(
                    f"malformed pickle: {type(error).__name__} in the opcode {opcode.name} at byte {position}"
                ) from None
        _expect(len(self.stack) == 1, "it does not leave exactly one object")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                items = self.stack[start + 1 :]
                del self.stack[start:]
                return items
        raise RefusedPickle("malformed pickle: a missing mark")

    def name(self, dotted: str) -> Name:
        is_storage = self.storages is not None and dotted in STORAGE_ITEM_BYTES
        if dotted not in self.constructors and dotted not in INERT_NAMES and not is_storage:
            raise RefusedPickle(
                f"refused {dotted!r}: not one of the {len(self.constructors)} names that a StyleGAN2 checkpoint needs. "
                "Nothing was executed"
            )
        return Name(dotted)

    def call(self, function: Any, arguments: Any) -> Any:
        _expect(isinstance(function, Name), f"a call of a {type(function).__name__}")
        _expect(isinstance(arguments, tuple), "a call without an argument tuple")
        if function.dotted not in self.constructors:
            raise RefusedPickle(f"refused to call {function.dotted!r}. Nothing was executed")
        return self.constructors[function.dotted](*arguments)

    def persistent(self, reference: Any) -> StorageReference:
        match reference:
            case ("storage", Name(dotted), str(key), _, int(numel), *_) if self.storages is not None:
                num_bytes = STORAGE_ITEM_BYTES[dotted] * numel
                _expect(
                    numel >= 0 and self.storages.get(key, num_bytes) == num_bytes, "a storage of two sizes"
                )
                self.storages[key] = num_bytes
                return StorageReference(key, num_bytes)
        raise RefusedPickle("refused a reference to an object outside of the file")

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                stack.append(_MARK)
            case _ if opcode in _LITERALS:
                stack.append(_LITERALS[opcode])
            case _ if opcode in _DATA:
                stack.append(argument)
            case _ if opcode in _EMPTY:
                stack.append(_EMPTY[opcode]())
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case _ if opcode in _TUPLES:
                n = _TUPLES[opcode]
                _expect(len(stack) >= n, "a stack that is too short")
                stack[-n:] = [tuple(stack[-n:])]
            case "APPEND" | "APPENDS":
                items = self.pop_to_mark() if opcode == "APPENDS" else [stack.pop()]
                _expect(isinstance(stack[-1], list), f"an item appended to a {type(stack[-1]).__name__}")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = self.pop_to_mark() if opcode == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _expect(len(items) % 2 == 0, "a key without a value")
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _set_item(stack[-1], key, value)
            case "ADDITEMS":
                items = self.pop_to_mark()
                _expect(isinstance(stack[-1], set), f"an item added to a {type(stack[-1]).__name__}")
                stack[-1].update(_set(items))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(self.name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                _expect(isinstance(module, str) and isinstance(attribute, str), "a name that is not text")
                stack.append(self.name(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, arguments))
            case "BUILD":
                state = stack.pop()
                stack[-1] = _build(stack[-1], state)
            case "BINPERSID" if self.storages is not None:
                stack.append(self.persistent(stack.pop()))
            case _:
                raise RefusedPickle(f"refused the opcode {opcode}, which no StyleGAN2 checkpoint needs")


def load(
    stream: io.BufferedIOBase | mmap.mmap,
    constructors: Mapping[str, Callable[..., Any]] = CONSTRUCTORS,
    storages: dict[str, int] | None = None,
) -> Any:
    """The data of one pickle.

    Args:
        stream: read from its position to just behind the pickle's end.
        constructors: the allow-list, with what to make of each name.
        storages: filled with the bytes announced for each external storage; None refuses such references.

    Returns:
        Plain containers, numbers, strings, bytes, `Record`, `LazyTensor` and `LazyArray`.

    Raises:
        RefusedPickle: naming the offending name, opcode or size. Nothing in the file has been executed.
    """
    try:
        return _Machine(constructors, storages).run(stream)
    except RefusedPickle:
        raise
    # pickletools: unknown opcode, truncated argument, no STOP; absurd length; a stray backslash where warnings are errors
    except (ValueError, MemoryError, Warning) as error:
        raise RefusedPickle(f"not a complete pickle: {error}") from None


def _check_legacy_torch_file(
    stream: io.BufferedIOBase | mmap.mmap, num_bytes: int, allowed: Mapping[str, Callable[..., Any]]
) -> None:
    """Walks torch's pre-2020 format: magic, version, machine facts, object, storage keys, then the raw storages."""
    storages: dict[str, int] = {}
    for part in range(5):
        load(stream, allowed if part == 3 else {}, storages if part == 3 else None)
    if sum(storages.values()) > num_bytes:
        raise RefusedPickle(
            f"its tensor storages announce {sum(storages.values())} bytes, but the data has {num_bytes}"
        )


def _decode_storage(data: bytes) -> Tensor:
    """A 1-D tensor over the storage in `data`."""
    try:
        _check_legacy_torch_file(io.BytesIO(data), len(data), {})
    except RefusedPickle as error:
        raise RefusedPickle(f"in the storage of a tensor: {error}") from None
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its parser met
        raise RefusedPickle(
            f"in the storage of a tensor: torch cannot read it ({type(error).__name__})"
        ) from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise RefusedPickle(f"in the storage of a tensor: found a {type(storage).__name__} instead")
    return torch.tensor([], dtype=storage.dtype).set_(storage)


def _check_zip_torch_file(stream: io.BufferedIOBase, num_bytes: int) -> None:
    """Walks today's format: a zip of `<prefix>/data.pkl` and one stored entry `<prefix>/data/<key>` per storage."""
    try:
        with zipfile.ZipFile(stream) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            packed = [e.filename for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED]
            if packed or sum(sizes.values()) > num_bytes:
                raise RefusedPickle("compressed or oversized entries in the zip; torch.save writes none")
            main = next((name for name in sizes if name.endswith("/data.pkl")), None)
            if main is None:
                raise RefusedPickle("a zip file without the data.pkl that torch.save writes")
            storages: dict[str, int] = {}
            load(io.BytesIO(archive.read(main)), TORCH_FILE_CONSTRUCTORS, storages)
    except zipfile.BadZipFile as error:
        raise RefusedPickle(f"a damaged or truncated zip file: {error}") from None
    prefix = main.removesuffix(".pkl")
    for key, announced in storages.items():
        if announced > sizes.get(f"{prefix}/{key}", 0):
            raise RefusedPickle(
                f"storage {key!r} announces {announced} bytes, but has {sizes.get(f'{prefix}/{key}', 0)}"
            )


def load_torch_file(path: Path) -> Any:
    """A file of `torch.save`, today's zip format or the older one, by `torch.load(weights_only=True)` behind our checks.

    Raises:
        RefusedPickle: a name outside the allow-list (plus argparse.Namespace), compressed entries (torch writes none, zip
            bombs do), sizes that the file does not have, or a damaged file.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        if stream[:4] == b"PK\x03\x04":  # the rule by which torch decides, too
            _check_zip_torch_file(file, num_bytes)
        else:
            _check_legacy_torch_file(stream, num_bytes, TORCH_FILE_CONSTRUCTORS)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its parser met
        raise RefusedPickle(
            f"torch cannot read {path.name}: {type(error).__name__}: {str(error)[:200]}"
        ) from None
