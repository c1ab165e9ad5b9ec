"""Progress with time left: a bar on a terminal, an occasional line when piped, nothing on other than the main process.

    with progress("attacking", total=1000) as advance:
        ...
        advance(32)

It writes to standard error, so that standard output holds results only.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch.distributed
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_SEC = 10.0

_bars: Progress | None = None  # the terminal's; what runs inside something else gets a bar below its bar


@runtime_checkable
class Advance(Protocol):
    def __call__(self, amount: int = 1, note: str = "") -> None:
        """Args:
        amount: how many more are done.
        note: a few words to show beside the numbers, for example the loss; stays until the next one.
        """
        ...


def is_main_process() -> bool:
    """Whether this process has rank 0, known before and after the process group is set up."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def progress(
    what: str, total: int | None = None, done: int = 0, enabled: bool | None = None
) -> Iterator[Advance]:
    """Show how far something is.

    Args:
        what: a verb: 'attacking'.
        total: None if nobody knows.
        done: how many were done before, for example when resuming.
        enabled: False shows nothing; None shows it on the main process only.
    """
    if not (is_main_process() if enabled is None else enabled):
        yield lambda amount=1, note="": None
    elif sys.stderr.isatty():
        with _bar(what, total, done) as advance:
            yield advance
    else:
        with _lines(what, total, done) as advance:
            yield advance


@contextmanager
def _bar(what: str, total: int | None, start: int) -> Iterator[Advance]:
    global _bars
    outer = _bars
    bars = outer or Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
    if outer is None:
        bars.start()
        _bars = bars
    task = bars.add_task(what, total=total, completed=start, note="")

    def advance(amount: int = 1, note: str = "") -> None:
        bars.advance(task, amount)
        if note:
            bars.update(task, note=note)

    try:
        yield advance
    finally:
        if outer is None:
            bars.stop()
            _bars = None
        else:
            bars.remove_task(task)


@contextmanager
def _lines(what: str, total: int | None, start: int) -> Iterator[Advance]:
    done, began = start, time.monotonic()
    last_line, last_done, last_note = began, start, ""

    def line() -> None:
        nonlocal last_line, last_done
        now = time.monotonic()
        per_sec = (done - start) / max(now - began, 1e-9)
        words = [
            f"{what}: {done}" if total is None else f"{what}: {done} of {total}",
            f"{_clock(now - began)} gone",
        ]
        if total is not None and done < total and per_sec:
            words.append(f"{_clock((total - done) / per_sec)} left")
        print(", ".join([*words, last_note] if last_note else words), file=sys.stderr, flush=True)
        last_line, last_done = now, done

    def advance(amount: int = 1, note: str = "") -> None:
        nonlocal done, last_note
        done += amount
        last_note = note or last_note
        if time.monotonic() - last_line >= LINE_EVERY_SEC:
            line()

    yield advance
    if (
        last_line > began and done > last_done
    ):  # it took long enough for a line before, so say that it is over
        line()


def _clock(sec: float) -> str:
    minutes, seconds = divmod(round(sec), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
