"""Hostile and damaged files: every one is refused, by name where there is one, and nothing runs."""

import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from generators.stylegan2.checkpoints import RefusedPickle, read_checkpoint
from generators.stylegan2.checkpoints.restricted_pickle import LazyArray, LazyTensor, load, load_torch_file

Data = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
PROTOCOLS = [2, 3, 4, 5]


class Payload:
    """Runs a command when it is unpickled by the standard library."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class FakeTensor:
    """Pickles like a tensor whose storage consists of `storage_bytes`."""

    def __init__(
        self, storage_bytes: bytes, size: tuple[int, ...] = (1,), stride: tuple[int, ...] = (1,)
    ) -> None:
        self.arguments = (
            Payload(torch.storage._load_from_bytes, storage_bytes),
            0,
            size,
            stride,
            False,
            OrderedDict(),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


def legacy_bytes(obj: Any) -> bytes:
    """What `torch.save` wrote before 2020, which is what stands inside of these pickles."""
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def refusal(stream: bytes, canary: Path | None = None) -> str:
    """The message with which `stream` is refused."""
    with pytest.raises(RefusedPickle) as caught:
        load(io.BytesIO(stream))
    assert canary is None or not canary.exists(), "something was executed"
    return str(caught.value)


def refusal_to_decode(stream: bytes) -> str:
    """The message with which the tensor in the harmless `stream` is refused."""
    tensor = load(io.BytesIO(stream))
    with pytest.raises(RefusedPickle) as caught:
        tensor.decode()
    return str(caught.value)


def test_payloads_of_these_tests_work_in_the_standard_unpickler(canary: Path) -> None:
    pickle.loads(pickle.dumps(Payload(os.system, f"touch {canary}")))
    assert canary.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_os_system_in_the_outer_stream_is_refused_by_name(
    nvidia_data: Data, write_pickle: Write, canary: Path, protocol: int
) -> None:
    path = write_pickle(nvidia_data() | {"extra": Payload(os.system, f"touch {canary}")}, protocol)
    with pytest.raises(RefusedPickle, match=rf"network\.pkl: refused '{os.system.__module__}\.system'"):
        read_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrap", [pickle.dumps, legacy_bytes], ids=["bare", "in a torch file"])
def test_os_system_inside_a_nested_storage_is_refused_by_name(
    nvidia_data: Data, write_pickle: Write, canary: Path, protocol: int, wrap: Callable[[Any], bytes]
) -> None:
    data = nvidia_data()
    weights = data["G_ema"].state["_modules"]["mapping"].state["_buffers"]
    weights["w_avg"] = FakeTensor(wrap(Payload(os.system, f"touch {canary}")))
    path = write_pickle(data, protocol)
    with pytest.raises(
        RefusedPickle, match=rf"in the storage of a tensor: refused '{os.system.__module__}\.system'"
    ):
        read_checkpoint(path)
    assert not canary.exists()


def test_a_payload_in_the_discriminator_is_no_reason_to_go_on_without_it(
    nvidia_data: Data, write_pickle: Write, canary: Path
) -> None:
    data = nvidia_data()
    data["D"].state["_modules"]["b4"].state["_buffers"]["x"] = FakeTensor(
        legacy_bytes(Payload(os.system, f"touch {canary}"))
    )
    with pytest.raises(RefusedPickle, match=r"system"):
        read_checkpoint(write_pickle(data))
    assert not canary.exists()


def test_a_global_that_is_only_named_is_refused() -> None:
    assert "refused 'builtins.eval'" in refusal(b"\x80\x02cbuiltins\neval\n.")
    assert "refused '__builtin__.eval'" in refusal(b"\x80\x02c__builtin__\neval\n(X\x01\x00\x00\x001tR.")
    stack_global = b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93."
    assert "refused 'builtins.eval'" in refusal(stack_global)


@pytest.mark.parametrize(
    "name",
    [
        "builtins.getattr",
        "builtins.exec",
        "operator.attrgetter",
        "torch.load",
        "torch.serialization.load",
        "os.system",
    ],
)
def test_the_usual_gadgets_are_refused_by_name(name: str) -> None:
    module, attribute = name.rsplit(".", 1)
    assert f"refused '{name}'" in refusal(b"\x80\x02c" + f"{module}\n{attribute}\n.".encode())


def test_attributes_of_allowed_functions_cannot_be_reached() -> None:
    dotted = b"\x80\x04\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93."
    assert "_rebuild_tensor_v2.__globals__" in refusal(dotted)


def test_a_name_that_may_be_mentioned_may_not_be_called() -> None:
    assert "refused to call 'numpy.ndarray'" in refusal(b"\x80\x02cnumpy\nndarray\n)R.")


def test_build_works_on_no_name_and_with_no_slot_state() -> None:
    on_a_name = b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb."
    assert "refused the opcode BUILD on a Name" in refusal(on_a_name)
    slot_state = b"\x80\x02ccollections\nOrderedDict\n)RN}X\x01\x00\x00\x00aK\x01s\x86b."
    assert "refused the opcode BUILD on a dict" in refusal(slot_state)


def test_setstate_of_a_foreign_class_is_refused_by_name(canary: Path) -> None:
    command = f"touch {canary}".encode()
    state = b"}X\x07\x00\x00\x00commandX" + struct.pack("<I", len(command)) + command + b"s"
    assert "refused 'hostile.module.Thing'" in refusal(
        b"\x80\x02chostile.module\nThing\n)\x81" + state + b"b.", canary
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_object_arrays_are_refused(canary: Path, protocol: int) -> None:
    array = np.array([Payload(os.system, f"touch {canary}")], dtype=object)
    assert "refused the numpy dtype 'O8'" in refusal(pickle.dumps(array, protocol), canary)


def test_structured_numpy_arrays_are_refused() -> None:
    message = refusal(pickle.dumps(np.zeros(2, dtype=[("a", "f4"), ("b", "O")])))
    assert "refused the numpy dtype 'V12'" in message


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "i8", "u1", "b1"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_numpy_arrays_and_scalars_read_as_they_were(dtype: str, protocol: int) -> None:
    array = np.asarray([[0, 1, 2], [3, 4, 5]], order="F").astype(dtype)
    read = load(io.BytesIO(pickle.dumps([array, array[1, 1], array[:0]], protocol)))
    assert isinstance(read[0], LazyArray)
    assert np.array_equal(read[0].array, array)
    assert read[0].array.dtype == array.dtype
    assert read[1] == array[1, 1].item()
    assert read[2].array.shape == (0, 3)


@pytest.mark.parametrize(
    ("stream", "opcode"),
    [
        (b"\x80\x02Pname\n.", "PERSID"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "BINPERSID"),
        (b"\x80\x02(ios\nsystem\n.", "INST"),
        (b"\x80\x02(co\ns\no.", None),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\x83\x01\x00.", "EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02K\x01\x32.", "DUP"),
    ],
)
def test_opcodes_that_no_checkpoint_needs_are_refused(stream: bytes, opcode: str | None) -> None:
    message = refusal(stream)
    assert opcode is None or f"refused the opcode {opcode}" in message


@pytest.mark.parametrize(
    "stream",
    [b"\x80\x02.", b"\x80\x02t.", b"\x80\x02}R.", b"\x80\x02h\x07.", b"\x80\x02K\x01K\x02.", b"\x80\x02]}K\x01s.",
     b"\x80\x02}]K\x01s.", b"\x80\x02\x85.", b"\x80\x02K\x01", b"\x80\x02\xff.", b"\x80\x02X\xff\xff\xff\x7fab."],
)  # fmt: skip
def test_malformed_streams_are_refused_and_not_crashed_on(stream: bytes) -> None:
    refusal(stream)


def test_keys_that_overflow_the_stack_when_hashed_are_refused() -> None:
    nested = b"\x80\x02})" + b"\x85" * 20_000 + b"K\x01s."
    assert "a tuple as a key" in refusal(nested)


def test_a_tensor_reads_as_it_was_stored() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2)[1:]
    read = load(io.BytesIO(pickle.dumps(tensor)))
    assert isinstance(read, LazyTensor)
    assert torch.equal(read.decode(), tensor)


def _storage_bytes() -> bytes:
    """The encoded storage inside of a pickled tensor of four numbers."""
    arguments = (argument for _, argument, _ in pickletools.genops(pickle.dumps(torch.arange(4.0), 4)))
    return next(argument for argument in arguments if isinstance(argument, bytes))


def test_a_storage_that_announces_more_than_the_file_has_is_refused_before_it_is_allocated() -> None:
    honest = _storage_bytes()
    small, huge = b"K\x04N", b"\x8a\x06" + struct.pack("<q", 2**40)[:6] + b"N"  # numel, then None
    assert honest.count(small) == 1
    fake = pickle.dumps(FakeTensor(honest.replace(small, huge), (4,), (1,)))
    message = refusal_to_decode(fake)
    assert f"announce {4 * 2**40} bytes" in message


@pytest.mark.parametrize(
    ("size", "stride"),
    [((10**9,), (0,)), ((5,), (1,)), ((2, 2), (3, 1)), ((2,), (10**6,)), ((2**62, 2**62), (0, 0))],
)
def test_a_tensor_that_does_not_fit_into_its_storage_is_refused(
    size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    fake = pickle.dumps(FakeTensor(_storage_bytes(), size, stride))
    assert "does not fit into its storage" in refusal_to_decode(fake)


def test_many_views_of_one_storage_do_not_fill_the_memory(nvidia_data: Data, write_pickle: Write) -> None:
    data = nvidia_data()
    big = torch.zeros(20_000)
    buffers = data["G_ema"].state["_modules"]["mapping"].state["_buffers"]
    buffers |= {f"view{i}": big for i in range(1000)}
    with pytest.raises(ValueError, match="do not come from a file of"):
        read_checkpoint(write_pickle(data))


def test_a_network_that_contains_itself_is_refused(nvidia_data: Data, write_pickle: Write) -> None:
    data = nvidia_data()
    modules = data["G_ema"].state["_modules"]
    inner = modules["mapping"].state["_modules"]
    inner["a"], inner["b"] = modules["synthesis"], modules["synthesis"]
    for _ in range(40):  # 2^40 paths through a small file
        level = type(data["G_ema"])("Level", _modules={"a": inner["a"], "b": inner["a"]})
        inner["a"] = level
    with pytest.raises(ValueError, match="more modules than any StyleGAN2"):
        read_checkpoint(write_pickle(data))


def test_a_compressed_torch_file_is_refused_as_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02}.")
        archive.writestr("bomb/data/0", bytes(10_000_000))
    with pytest.raises(RefusedPickle, match="compressed or oversized"):
        load_torch_file(path)


def test_a_torch_file_whose_storage_is_shorter_than_announced_is_refused(tmp_path: Path) -> None:
    honest, path = tmp_path / "honest.pt", tmp_path / "short.pt"
    torch.save({"x": torch.arange(1000.0)}, honest)
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, content[:16] if entry.filename.endswith("/data/0") else content)
    with pytest.raises(RefusedPickle, match="announces 4000 bytes, but has 16"):
        load_torch_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_os_system_in_a_torch_file_is_refused_by_name(tmp_path: Path, canary: Path, zipped: bool) -> None:
    path = tmp_path / "evil.pt"
    content = {"g_ema": Payload(os.system, f"touch {canary}")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RefusedPickle, match=rf"evil\.pt: refused '{os.system.__module__}\.system'"):
        read_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_truncated_pickles_are_refused(nvidia_data: Data, write_pickle: Write, kept: float) -> None:
    path = write_pickle(nvidia_data())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(RefusedPickle, match="not a complete pickle"):
        read_checkpoint(path)


def test_damaged_pickles_read_or_raise_value_error_and_nothing_else(
    nvidia_data: Data, write_pickle: Write
) -> None:
    path = write_pickle({"G_ema": nvidia_data()["G_ema"]})
    content = path.read_bytes()
    # Damage among the opcodes, not in the numbers, which are most of the file and which nothing can check.
    places = [position for opcode, _, position in pickletools.genops(content) if "BYTES" not in opcode.name]
    rng = np.random.RandomState(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(40):
        damaged = bytearray(content)
        damaged[places[rng.randint(len(places))] + rng.randint(2)] = rng.randint(256)
        path.write_bytes(bytes(damaged))
        try:
            read_checkpoint(path)
            outcomes["read"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0
