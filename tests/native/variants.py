"""Whether there is a C++ compiler, and the compiler flags that compiled code is tested with."""

import platform

import pytest

from dlunet.native import FLAGS, find_compiler

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")

#: The flags of the package, and the same code for processors with shorter vector registers.
VARIANTS = {"this processor": FLAGS}
if platform.machine() == "x86_64":
    VARIANTS["shorter registers"] = (*FLAGS, "-mno-avx512f")
