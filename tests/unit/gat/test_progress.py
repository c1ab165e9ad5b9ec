"""Progress: lines when piped, a bar on a terminal, silence beside the main process."""

import os
import pty
import subprocess
import sys

import pytest

import gat.progress
from gat.progress import progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def test_piped_it_is_at_most_a_line_in_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress("attacking", total=100) as advance:
        for _ in range(100):
            clock.now += 0.25
            advance(1, note="loss 0.5")
    assert capsys.readouterr().err.splitlines() == [
        "attacking: 40 of 100, 0:10 gone, 0:15 left, loss 0.5",
        "attacking: 80 of 100, 0:20 gone, 0:05 left, loss 0.5",
        "attacking: 100 of 100, 0:25 gone, loss 0.5",
    ]


def test_what_is_quick_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress("attacking", total=3) as advance:
        advance(3)
    assert capsys.readouterr().err == ""


def test_resumed_work_does_not_count_for_speed(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress("training", total=1000, done=900) as advance:
        clock.now += 50
        advance(50)
        clock.now += 3650
    assert "950 of 1000, 0:50 gone, 0:50 left" in capsys.readouterr().err


def test_an_unknown_total_has_no_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress("reading") as advance:
        clock.now += 3661
        advance(7)
    assert capsys.readouterr().err == "reading: 7, 1:01:01 gone\n"


def test_other_processes_are_silent(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", "1")
    with progress("attacking", total=3) as advance:
        clock.now += 60
        advance(3, note="x")
    monkeypatch.delenv("RANK")
    with progress("attacking", total=3, enabled=False) as advance:
        clock.now += 60
        advance(3)
    assert capsys.readouterr().err == ""


def test_a_failure_passes_through(clock: Clock):
    with pytest.raises(RuntimeError, match="inside"), progress("attacking", total=3):
        raise RuntimeError("inside")
    assert gat.progress._bars is None


def test_on_a_terminal_bars_nest_and_standard_output_stays_clean():
    code = (
        "from gat.progress import progress\n"
        "with progress('training', total=2) as outer:\n"
        "    with progress('attacking', total=4) as inner:\n"
        "        inner(4, note='loss 0.5')\n"
        "    outer(2)\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # a closed terminal on Linux
    os.close(ours)
    assert done.stdout == b""
    assert b"training" in shown
    assert b"2/2" in shown
