"""The peak memory of a command."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


def peak_of(arguments: list[str]) -> float:
    """Run Python with arguments and return its peak resident memory, GiB.

    Asked of the running process: what the kernel tells after its end can be the peak of the one that started it.
    """
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with suppress(OSError):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.02)
    assert process.returncode == 0, arguments
    return round(peak / 2**20, 3)
