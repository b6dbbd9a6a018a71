"""Measures the peak memory of a command, alone or with all processes that it starts."""

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


def peak_of_family(arguments: list[str], folder: Path) -> float:
    """Run Python with arguments in a folder and return the peak resident memory of it and all its descendants in GiB.

    Shared pages are counted once per process, so this is an upper bound.
    """
    peak = 0
    with subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(resident, family(process.pid))))
            time.sleep(0.05)
    assert process.returncode == 0, arguments
    return round(peak / 2**30, 3)


def family(process: int) -> list[int]:
    """A process and all its descendants."""
    try:
        threads = Path(f"/proc/{process}/task").glob("*/children")
        children = [int(child) for listed in threads for child in listed.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        children = []
    return [process, *(one for child in children for one in family(child))]


def resident(process: int) -> int:
    """Resident memory of a process in bytes; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
    except (FileNotFoundError, ProcessLookupError):
        return 0
