"""Open files that belong to one process: opened on first use, never shared across a fork, never pickled."""

import os
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class _Closable(Protocol):
    def close(self) -> Any: ...


Handle = TypeVar("Handle", bound=_Closable)

_handles: dict[str, tuple[int, Any]] = {}
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not inherit a lock that another thread of its parent held
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def process_handle(path: str, open_handle: Callable[[str], Handle]) -> Handle:
    """Returns this process's handle of a file, opening it on first use.

    One handle per file and process, because lmdb refuses to open a database twice in one process. A handle
    inherited through fork shares its file position (zip) or its environment (lmdb) with the parent; it is
    closed here, which leaves the parent's alone, and opened anew.

    Args:
        path: Resolved path, the same for all who read the file.
        open_handle: Opens it; the result must have `close()`.
    """
    pid = os.getpid()
    entry = _handles.get(path)
    if entry is None or entry[0] != pid:
        with _lock:
            entry = _handles.get(path)
            if entry is not None and entry[0] != pid:
                del _handles[path]
                entry[1].close()
                entry = None
            if entry is None:
                entry = _handles[path] = (pid, open_handle(path))
    handle: Handle = entry[1]
    return handle
