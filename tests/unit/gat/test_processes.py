"""The end of a launch of several processes: an exit code of 0, whatever gloo's threads were still at."""

import os
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
