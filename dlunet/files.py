"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import codecs
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from dlunet.errors import UserError, WriteError


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file as :func:`write_bytes` does."""
    write_bytes(path, text.encode())


def write_if_changed(path: Path, text: str) -> None:
    """Write a UTF-8 text file unless that is what is there: the folder may be one that is only to be read."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file that appears :func:`whole`, and only once it is on the disk.

    Raises:
        WriteError: The folder cannot be written.
    """
    with whole(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # else the name may outlive a crash of the machine, and the contents not


@contextmanager
def whole(path: Path, ending: str = "") -> Iterator[Path]:
    """While the block runs, the place where it writes a file or folder, which then appears under its own name.

    The place is beside it, hidden; of a block that fails nothing is left there. What a killed process leaves is removed
    by :func:`remove_leftovers`.

    Args:
        path: The file or folder; the folder above is made if missing. A folder of this name must be gone by the end of
            the block.
        ending: What the name of the place ends with, for those who go by it.

    Raises:
        WriteError: It cannot be written.
    """
    # The name does not grow with that of the file, which may be as long as names can be.
    short = blake2b(os.fsencode(path.name), digest_size=6).hexdigest()
    temporary = path.with_name(f".{platform.node()}.{os.getpid()}.{short}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)  # of an earlier process of the same number
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise WriteError.of(path, error) from None
    finally:
        _remove(temporary)


def check_name(path: Path) -> None:
    """Check that a path is UTF-8: ITK, which gets it as text, ends the process over any other.

    Raises:
        UserError: It is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="replace").decode()
        raise UserError(f"{shown}: its name is not UTF-8; expected a UTF-8 name; rename it") from None


def read_any_text(path: Path) -> str:
    """A text that somebody wrote with whatever program: UTF-8, UTF-16 or Latin-1, with a byte-order mark or without."""
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", errors="replace")
    if b"\0" in raw:
        return raw.decode("utf-16-le" if raw.find(b"\0") % 2 else "utf-16-be", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that no longer run left half-written in a folder."""
    pattern = re.compile(re.escape(f".{platform.node()}.") + r"(\d+)\.")
    for path in folder.glob(f".{platform.node()}.*"):
        match = pattern.match(path.name)
        if match and not is_running(int(match[1])):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there and can be removed."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def is_running(process: int) -> bool:
    """Whether a process of this machine still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
