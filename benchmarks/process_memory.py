"""Measures the peak memory of a command."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


def peak_of(arguments: list[str]) -> float:
    """Run Python with arguments and return its peak resident memory in GiB.

    Read while the process is running: the value that the kernel reports after its end can be that of the parent.
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
