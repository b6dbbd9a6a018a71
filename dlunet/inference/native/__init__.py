"""The light U-Net as compiled code for a CPU: a C++ file that is compiled on this machine when it is first needed."""

from dlunet.inference.native.engine import NativeEngine, can_run
from dlunet.inference.native.library import NativeUnavailable, find_compiler

__all__ = ["NativeEngine", "NativeUnavailable", "can_run", "find_compiler"]
