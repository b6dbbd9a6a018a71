"""Atomic writes: files and folders appear complete or not at all."""

from __future__ import annotations

import codecs
import io
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import psutil

from dlunet.errors import UserError, WriteError


def _machine() -> str:
    """This machine, or the container of it: where a process has the id that it has here."""
    namespace = Path("/proc/self/ns/pid")
    return f"{platform.node()}.{namespace.stat().st_ino if namespace.exists() else 0}"


#: How the names of this machine's temporary files begin, before the process.
TEMPORARY = f".{_machine()}."


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_if_changed(path: Path, text: str) -> None:
    """Write a UTF-8 text file unless it already has this content: the folder may be read-only."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically (:func:`whole`), flushed to disk before it appears.

    Raises:
        WriteError: The file cannot be written.
    """
    with whole(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # else the name may survive a crash of the machine without the contents


def save_tensors(values: Any, path: Path) -> None:
    """Write values with tensors in PyTorch's format, atomically, see :func:`write_bytes`."""
    import torch  # only here: most that write files need it not

    contents = io.BytesIO()
    torch.save(values, contents)
    write_bytes(path, contents.getbuffer())


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, which replaces an existing file; a copy where the file system has no links."""
    with whole(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@contextmanager
def whole(path: Path, ending: str = "") -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which is renamed to ``path`` when the block ends.

    The temporary path is a hidden file or folder beside ``path``; it is removed if the block fails. Leftovers of a
    killed process are removed by :func:`remove_leftovers`.

    Args:
        path: The file or folder; its parent is created if missing. An existing folder of this name must be removed
            before the block ends.
        ending: Suffix of the temporary name, for writers that choose the format by it.

    Raises:
        WriteError: It cannot be written.
    """
    # A digest, because the file's own name may already have the maximum length.
    short = blake2b(os.fsencode(path.name), digest_size=6).hexdigest()
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}.{short}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)  # left by an earlier process with the same id
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise WriteError.of(path, error) from None
    finally:
        _remove(temporary)


def check_name(path: Path) -> None:
    """Check that a path is valid UTF-8: ITK receives it as text and aborts the process on any other encoding.

    Raises:
        UserError: It is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="replace").decode()
        raise UserError(f"{shown}: its name is not UTF-8; expected a UTF-8 name; rename it") from None


def read_any_text(path: Path) -> str:
    """Read a text file in any common encoding: UTF-8, UTF-16 or Latin-1, with or without a byte-order mark."""
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
    """Remove the partial files left in a folder by processes of this machine that no longer run."""
    pattern = re.compile(re.escape(TEMPORARY) + r"(\d+)\.")
    for path in folder.glob(f"{TEMPORARY}*"):
        match = pattern.match(path.name)
        if match and not is_running(int(match[1])):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or folder if it exists and can be removed."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def is_running(process: int) -> bool:
    """Whether a process of this machine is still running.

    One that has ended is not, even if its parent has not taken note of that: in a container, the first process may
    never do so for those whose parent was killed.
    """
    try:
        os.kill(process, 0)
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
    except (PermissionError, psutil.AccessDenied):  # owned by another user
        return True
