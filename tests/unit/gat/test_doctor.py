"""`gat doctor`: what is missing is named with the command that brings it; only what is needed fails."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import gat.doctor
from gat.cli import main
from gat.doctor import EXTRAS, Check, cpu_flags, examine


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"abc")
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(b'abc').hexdigest()}  a.safetensors\n")
    return folder


def find(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_nothing_needed_fails_here(weights: Path, tmp_path: Path):
    checks = examine([weights], tmp_path)
    assert [check for check in checks if check.status == "failed"] == []
    assert find(checks, "torch").found == torch.__version__.split("+")[0]
    assert len({check.name for check in checks}) == len(checks)


def test_every_extra_of_the_project_has_a_purpose():
    extras = set(metadata("gat-robust").get_all("Provides-Extra") or [])
    assert extras - {"track", "test", "dev"} == set(EXTRAS)


def test_an_absent_optional_package_comes_with_its_command(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = gat.doctor.version

    def version(name: str) -> str:
        if name == "lmdb":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(gat.doctor, "version", version)
    check = find(examine([weights], tmp_path), "lmdb")
    assert check.status == "missing"
    assert "LSUN" in check.found
    assert "-m pip install 'lmdb" in check.advice


def test_a_version_we_were_not_tested_with_fails(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = gat.doctor.version
    monkeypatch.setattr(gat.doctor, "version", lambda name: "1.13.1" if name == "torch" else real(name))
    check = find(examine([weights], tmp_path), "torch")
    assert check.status == "failed"
    assert check.found.startswith("1.13.1, tested with ")


def test_altered_and_missing_weights_fail(weights: Path, tmp_path: Path):
    (weights / "a.safetensors").write_bytes(b"abd")
    check = find(examine([weights], tmp_path), "weights a.safetensors")
    assert (check.status, check.found.split(":")[0]) == ("failed", "altered")
    (weights / "a.safetensors").unlink()
    assert find(examine([weights], tmp_path), "weights a.safetensors").found == "missing"
    (weights / "SHA256SUMS").unlink()
    assert find(examine([weights], tmp_path), "shipped weights").status == "failed"


def test_a_launcher_that_would_start_one_process_is_noticed(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("num_processes: 99\n")
    check = find(examine([weights], tmp_path), "processes")
    assert check.status == "note"
    assert "asks for 99" in check.found
    assert "torchrun" in check.advice


def test_a_world_that_accelerate_does_not_see_fails(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Alone:
        num_processes = 1

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", Alone)
    check = find(examine([weights], tmp_path), "processes")
    assert (check.status, check.found) == ("failed", "WORLD_SIZE is 2, accelerate counts 1")


def test_more_threads_than_cores_are_noted(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert "OMP_NUM_THREADS" in find(examine([weights], tmp_path), "cpu").advice


def test_cpu_flags_are_read_on_intel_and_arm(tmp_path: Path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16\n\nprocessor\t: 1\nFeatures\t: asimd bf16\n")
    assert cpu_flags(file) == {"fpu", "amx_bf16", "asimd", "bf16"}
    assert cpu_flags(tmp_path / "absent") == set()


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("missing", 0), ("note", 0), ("failed", 1)])
def test_only_a_failed_check_makes_the_command_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: Any, code: int
):
    monkeypatch.setattr(
        "gat.cli.doctor.examine", lambda weights, folder: [Check("x", status, "found it", "do this")]
    )
    assert main(["doctor"]) == code
    assert "x: do this" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == code
    shown = json.loads(capsys.readouterr().out)
    assert shown == {
        "ok": code == 0,
        "checks": [{"name": "x", "status": status, "found": "found it", "advice": "do this"}],
    }
