"""Our own format, conversion into it, and telling files apart by their content."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from generators import checkpoint_file
from generators.stylegan2.checkpoints import (
    Checkpoint,
    convert,
    read_checkpoint,
    write_safetensors,
)
from generators.stylegan2.config import StyleGAN2Config
from generators.stylegan2.discriminator import Discriminator
from generators.stylegan2.generator import Generator

Data = Callable[..., dict[str, Any]]
Write = Callable[..., Path]


@pytest.fixture
def checkpoint(config: StyleGAN2Config, generator: Generator, discriminator: Discriminator) -> Checkpoint:
    metadata = {"license": "Apache-2.0", "model_card": "# Clothes\n32x32, trained by us"}
    return Checkpoint(config, dict(generator.state_dict()), dict(discriminator.state_dict()), metadata)


def assert_equal(a: Checkpoint, b: Checkpoint) -> None:
    assert a.config == b.config
    assert a.metadata == b.metadata
    assert a.generator.keys() == b.generator.keys()
    assert all(torch.equal(a.generator[k], b.generator[k]) for k in a.generator)
    assert (a.discriminator is None) == (b.discriminator is None)
    if a.discriminator is not None and b.discriminator is not None:
        assert all(torch.equal(a.discriminator[k], b.discriminator[k]) for k in a.discriminator)


def test_a_checkpoint_reads_back_as_it_was_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, checkpoint)
    assert_equal(read_checkpoint(path), checkpoint)
    write_safetensors(path, replace(checkpoint, discriminator=None))
    assert_equal(read_checkpoint(path), replace(checkpoint, discriminator=None))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_file_may_be_read_by_whoever_may_read_new_files_here(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "plain").touch()
    write_safetensors(tmp_path / "x.safetensors", checkpoint)
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_config_and_licence_stand_in_the_header_as_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", checkpoint)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        header = file.metadata()
    assert json.loads(header["config"])["z_dim"] == 6
    assert header["license"] == "Apache-2.0"


def test_conversion_keeps_tensors_config_and_source(
    nvidia_data: Data, write_pickle: Write, tmp_path: Path
) -> None:
    source, destination = write_pickle(nvidia_data()), tmp_path / "converted.safetensors"
    written = convert(source, destination)
    assert_equal(read_checkpoint(destination), written)
    assert_equal(read_checkpoint(source), written)
    assert written.metadata["source_file"] == "network.pkl"


def test_conversion_replaces_nothing_unless_told_to(
    nvidia_data: Data, write_pickle: Write, tmp_path: Path
) -> None:
    source, destination = write_pickle(nvidia_data()), tmp_path / "x.safetensors"
    destination.write_text("precious")
    with pytest.raises(FileExistsError, match="exists already; nothing was written"):
        convert(source, destination)
    assert destination.read_text() == "precious"
    convert(source, destination, overwrite=True)
    assert read_checkpoint(destination).metadata["source_file"] == "network.pkl"


def test_a_hostile_source_leaves_no_destination(tmp_path: Path) -> None:
    source = tmp_path / "evil.pkl"
    source.write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    with pytest.raises(ValueError, match=r"refused 'os\.system'"):
        convert(source, tmp_path / "x.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pkl"]


@pytest.mark.parametrize(
    ("destination", "message"), [("x.pkl", r"ending in \.safetensors"), ("none/x.safetensors", "no folder")]
)
def test_impossible_destinations_are_refused(tmp_path: Path, destination: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "absent.pkl", tmp_path / destination)


def test_a_write_that_fails_leaves_the_old_file_and_no_debris(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, checkpoint)
    before = path.read_bytes()

    def half_written(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(before[: len(before) // 2])

    monkeypatch.setattr(checkpoint_file, "save_file", half_written)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        write_safetensors(path, checkpoint)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_tensors_that_do_not_fit_the_config_are_not_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    wrong = replace(checkpoint, config=checkpoint.config.model_copy(update={"z_dim": 5}))
    with pytest.raises(
        ValueError, match=r"mapping\.fc0\.weight has shape \[7, 13\], its config says \[7, 12\]"
    ):
        write_safetensors(tmp_path / "x.safetensors", wrong)
    assert list(tmp_path.iterdir()) == []


def test_metadata_may_not_pose_as_the_format(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="may not have the keys config"):
        write_safetensors(tmp_path / "x.safetensors", replace(checkpoint, metadata={"config": "{}"}))


@pytest.mark.parametrize("kept", [9, 200, -1])
def test_truncated_files_are_refused(checkpoint: Checkpoint, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, checkpoint)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_checkpoint(path)


def test_a_header_that_announces_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_checkpoint(path)


def test_other_safetensors_files_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="has the format None, wanted 'stylegan2/1'"):
        read_checkpoint(path)
    save_file(
        {"weight": torch.zeros(2)}, path, {"gat_format": "stylegan2/1", "config": '{"img_resolution": 7}'}
    )
    with pytest.raises(ValueError, match="no valid config in its header"):
        read_checkpoint(path)
    config = checkpoint.config.model_dump_json()
    save_file({"critic/x": torch.zeros(2)}, path, {"gat_format": "stylegan2/1", "config": config})
    with pytest.raises(ValueError, match="unknown networks: critic"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"<!DOCTYPE html><html>Quota exceeded</html>",
            "is a web page: the download did not get the file itself",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00", "gzip-compressed: unpack it first"),
        (b"\x89PNG\r\n\x1a\n", "neither a pickle nor a torch or safetensors file"),
        (b"\x80\x04]\x94.", "a pickle with a list, not a StyleGAN2"),
        (b"\x80\x04}\x94\x8c\x04spamK\x01s.", "a pickle with a dict of spam, not a StyleGAN2"),
        (b"PK\x03\x04 not a zip", "damaged or truncated zip"),
    ],
)
def test_files_that_are_something_else_are_refused_by_what_they_are(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_what_a_file_is_does_not_depend_on_its_name(
    nvidia_data: Data, write_pickle: Write, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    assert read_checkpoint(write_pickle(nvidia_data(), name="a.safetensors")).config == checkpoint.config
    write_safetensors(tmp_path / "b.pkl", checkpoint)
    assert read_checkpoint(tmp_path / "b.pkl").config == checkpoint.config


def test_an_absent_file_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint file .*absent\.pkl"):
        read_checkpoint(tmp_path / "absent.pkl")
