"""How the processes of one launch end."""

import time

from accelerate import Accelerator

PAUSE_SECONDS = 0.3


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
