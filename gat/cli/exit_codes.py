"""What a command leaves behind: an exit code and, where it failed for a reason that its user can mend, one line instead of a traceback.

0 done; 1 failed (a traceback follows unless the failure explains itself); 2 what was asked cannot be done, with one line on
standard error that says why; 130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Callable


def exit_code(
    prog: str, work: Callable[[], int | None], show_traceback: Callable[[], bool] = lambda: False
) -> int:
    """Do the work, and say in one line why it could not be done.

    Args:
        prog: how the line begins.
        work: returns an exit code; None is 0.
        show_traceback: whether to show where an error came from; asked after one.
    """
    try:
        code = work()
        sys.stdout.flush()
        return code or 0
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if isinstance(error, ImportError) and error.name:
            raise  # not a reader that says what to install, but something broken
        if show_traceback():
            traceback.print_exc()
        print(f"{prog}: {_one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
