"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import codecs
import os
import platform
import re
import shutil
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from dlunet.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file as :func:`write_bytes` does."""
    write_bytes(path, text.encode())


def write_if_changed(path: Path, text: str) -> None:
    """Write a UTF-8 text file unless that is what is there: the folder may be one that is only to be read."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file under a temporary name beside it; it gets its own name once it is whole and on the disk.

    Raises:
        UserError: The folder cannot be written.
    """
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else the name may outlive a crash of the machine, and the contents not
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror}); check permissions and free space") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_name(path: Path) -> None:
    """Check that a path is UTF-8: ITK, which gets it as text, ends the process over any other.

    Raises:
        UserError: It is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="replace").decode()
        raise UserError(f"{shown}: has a name that is not UTF-8; expected one that can be printed; rename it") from None


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


def temporary_path(path: Path, ending: str = "") -> Path:
    """Where this process writes a file or folder until it is whole: beside it, hidden.

    The name does not grow with that of the file, which may be as long as names can be.
    """
    short = blake2b(os.fsencode(path.name), digest_size=6).hexdigest()
    return path.with_name(f".{platform.node()}.{os.getpid()}.{short}{ending}")


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that no longer run left half-written in a folder."""
    pattern = re.compile(re.escape(f".{platform.node()}.") + r"(\d+)\.")
    for path in folder.glob(f".{platform.node()}.*"):
        match = pattern.match(path.name)
        if match and not is_running(int(match[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
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
