"""Compiles the C++ files of this folder once for the current processor, and loads them as one library."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from dlunet.errors import WriteError
from dlunet.files import whole

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")
NO_COMPILER = f"no C++ compiler is installed ({', '.join(COMPILERS)}); install one, such as g++"


class NativeUnavailable(Exception):
    """The library cannot be used on this machine; the message says why."""


logger = logging.getLogger(__name__)

#: Write permission for group or others.
OTHERS_WRITE = 0o022


def find_compiler() -> str | None:
    """The C++ compiler: that of the environment variable CXX, else the first installed one."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))), None)


@cache
def load_library(flags: tuple[str, ...] = FLAGS) -> ctypes.CDLL:
    """The library, compiled for this processor unless it is cached.

    It is kept in the user's cache folder, under a name that depends on the source, the compiler and the processor's
    features, since different machines may share a home folder. If that folder cannot be used, the library is compiled
    for this process only.

    Raises:
        NativeUnavailable: There is no compiler, or it fails.
    """
    if os.name == "nt":
        raise NativeUnavailable("it does not run on Windows")
    compiler = find_compiler()
    if compiler is None:
        raise NativeUnavailable(NO_COMPILER)
    library = library_path(compiler, flags)
    try:
        if _is_ours(library.parent) and _is_ours(library):
            return _load(library)
        if library.is_absolute() and _is_usable(library.parent):
            _compile(compiler, flags, library)
            return _load(library)
        with tempfile.TemporaryDirectory(prefix="dlunet-") as folder:  # once loaded, the file is no longer needed
            return _load(_compile(compiler, flags, Path(folder) / library.name))
    except (OSError, WriteError) as error:
        raise NativeUnavailable(f"the library cannot be compiled ({error})") from None


@cache
def why_unavailable(flags: tuple[str, ...] = FLAGS) -> str | None:
    """Why the library cannot be used on this machine; None if it can. Compiles it if it is not cached.

    A failing compiler is reported once, a missing one is not.
    """
    try:
        load_library(flags)
    except NativeUnavailable as error:
        if find_compiler():
            logger.warning("warning: compiled code cannot be used: %s", error)
        return str(error)
    return None


def library_path(compiler: str, flags: tuple[str, ...] = FLAGS) -> Path:
    """The path of the compiled library in the cache folder."""
    target = _run([compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])  # predefined macros: the target processor
    code = b"".join(path.read_bytes() for path in (*HEADERS, *SOURCES))
    digest = hashlib.sha256(code + target + repr(flags).encode()).hexdigest()
    home = os.path.expanduser("~")  # noqa: PTH111  # without a home, "~" stays and nothing is cached
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path(home) / ".cache")
    return caches / "dlunet" / f"native-{digest[:16]}.so"


def _compile(compiler: str, flags: tuple[str, ...], library: Path) -> Path:
    with whole(library) as temporary:
        _run([compiler, *flags, *map(str, SOURCES), "-o", str(temporary)])
        temporary.chmod(temporary.stat().st_mode & ~OTHERS_WRITE)  # else it would not be trusted, see _is_ours
    return library


def _load(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NativeUnavailable(
            f"{library}: cannot be loaded ({error}); delete it, or set XDG_CACHE_HOME to a folder that allows "
            "executables"
        ) from None


def _is_usable(folder: Path) -> bool:
    """Whether the library can be stored in a folder, which is created if necessary."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _is_ours(folder) and os.access(folder, os.W_OK)
    except OSError:
        return False


def _is_ours(path: Path) -> bool:
    """Whether a path exists and only this user or root can have written it: the library is executed."""
    try:
        status = path.stat()
        return status.st_uid in (0, os.getuid()) and not status.st_mode & OTHERS_WRITE
    except OSError:
        return False


def _run(command: list[str]) -> bytes:
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        message = error.stderr.decode(errors="replace").strip().splitlines()
        raise NativeUnavailable(f"{command[0]} fails: {message[0] if message else error}") from None
    except OSError as error:
        raise NativeUnavailable(f"{command[0]} cannot be run: {error.strerror}") from None
