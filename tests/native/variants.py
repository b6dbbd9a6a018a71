"""Whether there is a C++ compiler, and the compiler flags that compiled code is tested with."""

import pytest
import torch

from dlunet.native import FLAGS, find_compiler

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")

#: The flags of the package, and the same code for processors with shorter vector registers.
VARIANTS = {"this processor": FLAGS}
if torch.backends.cpu.get_cpu_capability() == "AVX512":
    VARIANTS["shorter registers"] = (*FLAGS, "-mno-avx512f")
