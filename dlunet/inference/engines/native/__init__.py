"""The light U-Net as compiled code for a CPU: a C++ file, compiled on this machine on first use."""

from dlunet.inference.engines.native.engine import NativeEngine, can_run
from dlunet.inference.engines.native.library import find_compiler

__all__ = ["NativeEngine", "can_run", "find_compiler"]
