"""What the benchmarks share: variants that take turns, what a machine can do at most, and the file of a result."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from straightforward_loop import Found
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gat.files import write_json

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = {"undefended": "original", "trained": "gat"}  # name here: name of the weights in the run's folder
AGREE_WITHIN = 0.01  # success rates of the two loops


@dataclass(eq=False)
class Variant:
    """One way to find the examples.

    Attributes:
        run: which examples -> what was found.
        shares: whether a repeat takes a share of the examples, or all.
        previous: the variant to which it adds one idea.
    """

    name: str
    run: Callable[[Int[Tensor, " b"]], Found]
    shares: bool = False
    previous: "Variant | None" = None
    found: dict[int, Found] = field(default_factory=dict)
    sec_per_example: list[float] = field(default_factory=list)

    def measure(self, n: int, repeat: int, repeats: int) -> None:
        """One timed repeat."""
        low, high = (n * repeat // repeats, n * (repeat + 1) // repeats) if self.shares else (0, n)
        begin = time.perf_counter()
        found = self.run(torch.arange(low, high))
        self.sec_per_example.append((time.perf_counter() - begin) / (high - low))
        self.found[low] = found

    @property
    def everything(self) -> Found:
        """Of all examples, in order."""
        return Found.join(found for _, found in sorted(self.found.items()))

    @property
    def examples_per_sec(self) -> float:
        """Adversarial examples."""
        return float(self.everything.success.float().mean()) / median(self.sec_per_example)

    @property
    def row(self) -> dict[str, Any]:
        """For the report."""
        found = self.everything
        ratio = self.examples_per_sec / self.previous.examples_per_sec if self.previous else None
        return {
            "name": self.name,
            "examples_per_sec": round(self.examples_per_sec, 2),
            "ratio_to_previous": ratio and round(ratio, 3),
            "success": round(found.success_rate, 4),
            "mean_iterations": round(float(found.iterations[found.attacked].float().mean()), 2),
        }


def matmul_flops_per_sec(dtype: torch.dtype, sides: Sequence[int] = (512, 1024)) -> float:
    """The fastest square matrix product seen: what this process can reach at most."""
    best = 0.0
    for side in sides:
        a, b = torch.ones(side, side, dtype=dtype), torch.ones(side, side, dtype=dtype)
        torch.mm(a, b)
        for _ in range(5):
            begin = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2 * side**3 / (time.perf_counter() - begin))
    return best


class FlopCount(TorchDispatchMode):
    """Floating point operations of all convolutions and matrix products inside, forward and backward.

    `FlopCounterMode` also attributes them to modules, by hooks that refuse gradients with respect to leaves.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def machine() -> dict[str, Any]:
    """What the numbers were measured on and with."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "threads": torch.get_num_threads(),
        "hardware": f"{cpu}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": commit,
        "command": " ".join(["python", *sys.argv]),
    }


def write_results(result: Mapping[str, Any], folder: Path, task: str = "classification") -> None:
    """`table.json`: the measurement, and the rows that every result of this project has."""
    shared = {
        "task": task,
        "attack": "gat",
        "protocol": result["attack"],
        "n": result["n"],
        "seeds": result["seeds"],
    }
    rows = []
    for model, name in (("original", "undefended"), ("gat", "trained")):
        values = {
            "throughput_ratio_to_straightforward": result[f"ratio_{name}"],
            "success_straightforward": result[f"success_{name}"]["straightforward"],
            "success_ours": result[f"success_{name}"]["ours"],
        }
        if f"peak_fraction_{name}" in result:
            values["peak_fraction"] = result[f"peak_fraction_{name}"]
        rows += [
            {**shared, "model": model, "metric": metric, "value": value, "low": None, "high": None}
            for metric, value in values.items()
        ]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "table.json", {**result, "rows": rows})
