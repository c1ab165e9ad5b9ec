"""How the processes of one launch begin and end."""

import ctypes
import os
import platform
import time

from accelerate import Accelerator

PAUSE_SECONDS = 0.3
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
TOP_PAD_BYTES = 2**28


def keep_freed_memory() -> None:
    """Memory that is freed stays with the process, for the next batch of the same size.

    By default glibc gives large blocks back at once, and each of them is mapped and zeroed anew, page by page, when it is asked for
    again: a seventh of a training step on scenes. Does nothing without glibc, or where the environment says how to allocate.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES)):
        mallopt(option, value)


def leave_together(accelerator: Accelerator) -> None:
    """Closes the trackers and the process group when every process has got here; the last thing a run asks of others.

    With gloo a worker thread drops the tensors of the last collective after the collective has returned, needs the
    interpreter for it and aborts the process (exit code -6, all work done) where the interpreter is gone by then; a wrapped
    model keeps these threads alive beyond the process group (pytorch/pytorch issue 190489). So they are given the
    interpreter for a moment.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1:
        time.sleep(PAUSE_SECONDS)
