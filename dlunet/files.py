"""Files that appear whole or not at all, and stamps that tell whether a file changed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dlunet.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file as :func:`write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it.

    Raises:
        UserError: The folder cannot be written.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror}); check permissions and free space") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def file_stamp(*paths: Path | None) -> list[list[int]]:
    """Size and time of modification of files, or of the files in a folder; a change in either marks a changed file."""
    return [_stamp(path) for path in paths if path is not None]


def _stamp(path: Path) -> list[int]:
    stats = [file.stat() for file in path.iterdir()] if path.is_dir() else [path.stat()]
    return [sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)]
