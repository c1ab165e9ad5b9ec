"""Is this machine ready? Every check says what it found and, where something is missing, the command that brings it."""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
import yaml
from packaging.requirements import Requirement

DISTRIBUTION = "gat-robust"
MIN_FREE_GB = 2.0

# What an extra is for. The extras themselves, and the versions they want, are those of pyproject.toml.
EXTRAS = {
    "imagenet": "EfficientNet-Lite0 with its ImageNet weights, and photographs to attack",
    "lsun": "LSUN databases",
    "parquet": "CelebA-HQ as parquet shards",
    "seg": "the models of segmentation-models-pytorch",
    "tensorboard": "training curves in TensorBoard",
    "trackio": "training curves in Trackio",
    "wandb": "training curves in Weights & Biases",
}

Status = Literal["ok", "note", "missing", "failed"]


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        status: 'failed' is what stops GAT from working; 'missing' is something optional; 'note' is worth knowing.
        found: what there is.
        advice: what to do about it, '' if nothing.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def examine(weights: Sequence[Path], folder: Path) -> list[Check]:
    """All checks.

    Args:
        weights: folders of the weights that ship, each with its SHA256SUMS.
        folder: where runs will be written.
    """
    return [
        _python(),
        *_requirements(),
        _operators(),
        *_devices(),
        _cpu(),
        _memory(),
        *_processes(),
        *_extras(),
        *(check for place in weights for check in _weights(place)),
        _disk(folder),
    ]


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < (3, 11):  # noqa: UP036 - pip would refuse it, a path to the sources does not
        return Check("python", "failed", found, "needs 3.11 or later")
    return Check("python", "ok", found)


def _pip(*requirements: str) -> str:
    return f"{sys.executable} -m pip install " + " ".join(f"'{requirement}'" for requirement in requirements)


def _requirement(name: str, requirement: Requirement, absent: Status, purpose: str = "") -> Check:
    """Whether the installed version is within the range we were tested with."""
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return Check(name, absent, f"not installed{purpose and ', for ' + purpose}", _pip(wanted))
    if not requirement.specifier.contains(installed, prereleases=True):
        return Check(
            name,
            "failed" if absent == "failed" else "note",
            f"{installed}, tested with {requirement.specifier}",
            _pip(wanted),
        )
    return Check(name, "ok", f"{installed}{purpose and ', for ' + purpose}")


def _own_requirements() -> list[Requirement]:
    try:
        return [Requirement(text) for text in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        return []


def _requirements() -> list[Check]:
    required = [requirement for requirement in _own_requirements() if requirement.marker is None]
    if not required:
        return [
            Check(
                DISTRIBUTION,
                "failed",
                "not installed",
                f"{sys.executable} -m pip install -e .  (in the repository)",
            )
        ]
    own = Check(DISTRIBUTION, "ok", version(DISTRIBUTION))
    return [own, *(_requirement(requirement.name, requirement, "failed") for requirement in required)]


def _extras() -> list[Check]:
    checks = []
    for extra, purpose in EXTRAS.items():
        for requirement in _own_requirements():
            if (
                requirement.marker
                and requirement.name != DISTRIBUTION
                and requirement.marker.evaluate({"extra": extra})
            ):
                checks.append(_requirement(requirement.name, requirement, "missing", purpose))
    return checks


def _operators() -> Check:
    """torchvision's compiled operators exist only for the very torch build they were compiled for."""
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (ImportError, RuntimeError, OSError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return Check(
            "torchvision operators", "failed", reason, _pip("torch", "torchvision") + " --force-reinstall"
        )
    return Check("torchvision operators", "ok", "work with this torch")


def _devices() -> Iterable[Check]:
    if not torch.cuda.is_available():
        yield Check("gpu", "note", "none that torch can use; everything runs on the CPU")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            free_gb = torch.cuda.mem_get_info()[0] / 1e9
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16 (no bf16)"
        found = (
            f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {free_gb:.0f} GB free, {precision}"
        )
        yield Check(f"gpu {index}", "ok", found)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Instruction sets the kernel reports; empty where there is no such file."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return {
        word
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for word in line.split(":", 1)[1].split()
    }


def _cpu() -> Check:
    flags = cpu_flags()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fast = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    precision = f"bf16 in hardware ({', '.join(fast)})" if fast else "no bf16 in hardware"
    onednn = "oneDNN" if torch.backends.mkldnn.is_available() else "no oneDNN"
    found = f"{cores} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {onednn}, {precision}"
    if torch.get_num_threads() > cores:
        return Check("cpu", "note", found, f"more threads than cores: export OMP_NUM_THREADS={cores}")
    if not fast:
        return Check("cpu", "note", found, "on this CPU train with fp32: bf16 is emulated and slow")
    return Check("cpu", "ok", found)


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = (Path("/sys/fs/cgroup/memory.max")).read_text().strip()
        total = min(total, int(limit)) if limit.isdigit() else total
    except OSError:
        pass
    found = f"{total / 1e9:.1f} GB"
    return (
        Check("memory", "ok", found)
        if total >= 3.9e9
        else Check("memory", "note", found, "the quickstart wants 4 GB")
    )


def _processes() -> Iterable[Check]:
    """Launchers that start fewer processes than they were asked for, silently."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    advice = "for N processes on a CPU: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N train_gat.py ..."
    if world > 1:
        from accelerate import PartialState

        started = PartialState().num_processes
        found = f"WORLD_SIZE is {world}, accelerate counts {started}"
        agree = started == world
        yield Check("processes", "ok" if agree else "failed", found, "" if agree else advice)
        return
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    config = cache / "accelerate" / "default_config.yaml"
    asked, num_gpus = _asked_processes(config), torch.cuda.device_count()
    if asked > 1 and num_gpus < asked:
        found = f"{config} asks for {asked}, but there are {num_gpus} GPUs and `accelerate launch` starts no more processes"
        yield Check("processes", "note", found, advice)
    else:
        yield Check("processes", "ok", f"{asked}")


def _asked_processes(config: Path) -> int:
    try:
        asked = (yaml.safe_load(config.read_text()) or {}).get("num_processes", 1)
        return int(asked)
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):
        return 1


def _weights(folder: Path) -> Iterable[Check]:
    """Files against `SHA256SUMS`, in the format of sha256sum."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        yield Check(
            "shipped weights", "failed", f"no {sums}", "install again from a complete copy of the repository"
        )
        return
    for line in sums.read_text().split("\n"):
        expected, _, name = line.partition("  ")
        if not name:
            continue
        file = folder / name.strip()
        if not file.is_file():
            yield Check(f"weights {name}", "failed", "missing", f"restore {file}")
            continue
        with file.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != expected:
            yield Check(
                f"weights {name}",
                "failed",
                f"altered: sha256 is {actual[:12]}..., wanted {expected[:12]}...",
                f"restore {file}",
            )
        else:
            yield Check(
                f"weights {name}", "ok", f"{file.stat().st_size / 1e6:.1f} MB, sha256 {actual[:12]}..."
            )


def _disk(folder: Path) -> Check:
    free_gb = shutil.disk_usage(folder).free / 1e9
    found = f"{free_gb:.1f} GB free in {folder.resolve()}"
    if free_gb < MIN_FREE_GB:
        return Check("disk", "note", found, "a run with checkpoints may need more")
    return Check("disk", "ok", found)
