"""Compiled code for a CPU: C++ files, compiled on this machine on first use."""

from dlunet.native.library import (
    FLAGS,
    NO_COMPILER,
    NativeUnavailable,
    find_compiler,
    load_library,
    why_unavailable,
)
from dlunet.native.memory import keep_freed_memory

__all__ = [
    "FLAGS",
    "NO_COMPILER",
    "NativeUnavailable",
    "find_compiler",
    "keep_freed_memory",
    "load_library",
    "why_unavailable",
]
