"""Files that appear whole or not at all, tables of cases, and stamps that tell whether a file changed."""

from __future__ import annotations

import csv
import io
import os
import platform
import re
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
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror}); check permissions and free space") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def temporary_path(path: Path) -> Path:
    """Where this process writes a file until it is whole: beside it, hidden, with its ending."""
    return path.with_name(f".{platform.node()}.{os.getpid()}.{path.name}")


def remove_leftovers(folder: Path) -> None:
    """Remove files that processes of this machine that no longer run left half-written in a folder."""
    pattern = re.compile(re.escape(f".{platform.node()}.") + r"(\d+)\.")
    for path in folder.glob(f".{platform.node()}.*"):
        match = pattern.match(path.name)
        if match and not is_running(int(match[1])):
            path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether a process of this machine still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def read_case_table(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV file by their column ``case``; none where there is no such file.

    Raises:
        UserError: It is another kind of file.
    """
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    if any("case" not in row for row in rows):
        raise UserError(f"{path}: has no column 'case'; expected the table of an earlier run; move it away")
    return {row["case"]: row for row in rows}


def write_case_table(path: Path, rows: dict[str, dict[str, str]]) -> None:
    """Write rows, each of which has a ``case``, as a CSV file with all their columns."""
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    text = io.StringIO()
    table = csv.DictWriter(text, list(columns), lineterminator="\n", restval="")
    table.writeheader()
    table.writerows(rows.values())
    write_text(path, text.getvalue())


def file_stamp(*paths: Path | None) -> list[list[int]]:
    """Size and time of modification of files, or of the files in a folder; a change in either marks a changed file."""
    return [_stamp(path) for path in paths if path is not None]


def _stamp(path: Path) -> list[int]:
    stats = [file.stat() for file in path.iterdir()] if path.is_dir() else [path.stat()]
    return [sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)]
