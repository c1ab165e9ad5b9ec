"""Files that are there whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what `path` shall be: it becomes that when the block ends. A killed process, a full disk or an error inside
    leaves the file that was there before, never half of a new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """All of the text, or what was there before."""
    with written_whole(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: object) -> None:
    """All of it, for people to read too, or what was there before."""
    write_text(path, json.dumps(content, indent=1) + "\n")
