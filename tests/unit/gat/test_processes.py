"""How processes begin, with their memory kept, and how a launch of several ends: with exit code 0, whatever gloo's threads were at."""

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# No thread gets the interpreter before a collective or a pause gives it away: without `leave_together` about two in five
# such launches abort.
SCRIPT = """
import sys, torch
from accelerate import Accelerator
from gat.processes import leave_together

accelerator = Accelerator(cpu=True)
learner = accelerator.prepare(torch.nn.Linear(3, 3))
images = torch.ones(2, 3)
learner(images).sum().backward()
sys.setswitchinterval(1000)
both = accelerator.gather(images)
leave_together(accelerator)
"""


def launch(script: Path) -> list[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {
        "PYTHONPATH": ".",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)], env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    return [process.wait(timeout=120) for process in ranks]


@pytest.mark.slow
def test_processes_that_share_tensors_to_the_end_leave_with_success(tmp_path: Path):
    (tmp_path / "two.py").write_text(SCRIPT)
    codes = [launch(tmp_path / "two.py") for _ in range(4)]
    assert codes == [[0, 0]] * 4


PAGES = """
import resource, sys, torch
from gat.processes import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other habits")
@pytest.mark.parametrize("chosen", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_freed_memory_is_used_again_unless_the_environment_says_how(chosen: dict[str, str]):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    output = subprocess.check_output([sys.executable, "-c", PAGES], env=plain | {"PYTHONPATH": "."} | chosen)
    before, after = map(int, output.split())
    assert before > 10_000 / 512  # pages of 64 MiB each time, be they large or small
    if chosen:
        assert after > before / 2
    else:
        assert after < before / 10
