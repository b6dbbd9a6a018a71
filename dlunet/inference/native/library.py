"""Compiles ``light_unet.cpp`` for the processor at hand, once, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from dlunet.files import temporary_path

SOURCE = Path(__file__).with_name("light_unet.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")


class NativeUnavailable(Exception):
    """There is no compiler, or it cannot make the library, or the network is not one that the library can run."""


def find_compiler() -> str | None:
    """The C++ compiler: that of the variable CXX, else the first that is installed."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))), None)


@cache
def load_library(flags: tuple[str, ...] = FLAGS) -> ctypes.CDLL:
    """The library, compiled for this processor unless that was done before.

    It is kept in the user's cache folder, under a name that changes with the source, the compiler and what the
    processor can do: a home folder may be shared by machines of several kinds.

    Raises:
        NativeUnavailable: There is no compiler, or it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise NativeUnavailable(f"no C++ compiler is installed ({', '.join(COMPILERS)})")
    library = library_path(compiler, flags)
    if not library.exists():
        temporary = temporary_path(library)
        _run([compiler, *flags, str(SOURCE), "-o", str(temporary)])
        temporary.replace(library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NativeUnavailable(f"{error}; delete that file") from None


def library_path(compiler: str, flags: tuple[str, ...] = FLAGS) -> Path:
    """Where the library is kept once it is compiled."""
    target = _run([compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])  # what the compiler would compile for
    digest = hashlib.sha256(SOURCE.read_bytes() + target + repr(flags).encode()).hexdigest()
    return _cache_folder() / f"light_unet-{digest[:16]}.so"


def _cache_folder() -> Path:
    """Where libraries are kept; where that cannot be written, a folder that this process alone uses."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlunet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):
        return Path(tempfile.mkdtemp(prefix="dlunet-"))


def _run(command: list[str]) -> bytes:
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        message = error.stderr.decode(errors="replace").strip().splitlines()
        raise NativeUnavailable(f"{command[0]} fails: {message[0] if message else error}") from None
    except OSError as error:
        raise NativeUnavailable(f"{command[0]} cannot be run: {error.strerror}") from None
