"""Detect changed files by their file system attributes and, where these differ, by their contents.

Size and modification time are not enough: two swapped files, or an edited file whose time was restored, keep both.
Inode number and change time show that something happened, and the contents whether it matters: a dataset that was
moved or touched is read once and not mistaken for another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

CHUNK_BYTES = 2**22

#: Names of what desktops and network disks leave in a folder: no contents of it.
LITTER = re.compile(r"\.ds_store|\.directory|\._.*|\.nfs.*|thumbs\.db|desktop\.ini", re.IGNORECASE)

#: For each file or folder: digests of its file system attributes and of its contents.
Stamps = list[dict[str, str]]


def stamp(paths: Sequence[Path]) -> Stamps:
    """The stamps of files or folders of files; reads all of them.

    What is made from the files is read after this: if they change in between, it is out of date, not mistaken for new.

    Raises:
        OSError: A file cannot be read.
    """
    return [{"disk": _on_disk(path), "contents": _contents(path)} for path in paths]


def stamp_if_readable(paths: Sequence[Path]) -> Stamps:
    """The same; if a file cannot be read, no stamps, which match no files. What reads the files then reports it."""
    try:
        return stamp(paths)
    except OSError:
        return []


def follow(known: Any, paths: Sequence[Path]) -> Stamps | None:
    """Up-to-date stamps of files whose contents match earlier stamps, or None if any file changed.

    Args:
        known: Earlier stamps of the same files; anything else counts as no stamps.
        paths: Files or folders of files.
    """
    if not isinstance(known, list) or len(known) != len(paths):
        return None
    followed = []
    for before, path in zip(known, paths, strict=True):
        try:
            disk = _on_disk(path)
            if before["disk"] != disk and before["contents"] != _contents(path):
                return None
        except (OSError, KeyError, TypeError):
            return None
        followed.append({"disk": disk, "contents": before["contents"]})
    return followed


def _files(path: Path) -> list[Path]:
    """A file itself; of a folder, the files that may be contents, hidden ones too: a hidden slice is an error."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if not LITTER.fullmatch(file.name) and file.is_file())


def _on_disk(path: Path) -> str:
    digest = blake2b(digest_size=16)
    for file in _files(path):
        stat = file.stat()
        facts = (file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        digest.update(repr(facts).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _contents(path: Path) -> str:
    digest = blake2b(digest_size=16)
    for file in _files(path):
        digest.update(f"{file.stat().st_size} ".encode())
        with file.open("rb") as contents:
            while chunk := contents.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
