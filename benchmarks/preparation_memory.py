"""Measures the peak memory of ``dlunet prepare`` with two processes on eight CTs of 512×512×200.

    python benchmarks/preparation_memory.py

The resident memory of the command and all its child processes is summed every 0.05 s. Shared pages are counted once per
process, so the result is an upper bound.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "preparation_memory.json"
SHAPE, SPACING = (200, 512, 512), (1.6, 0.8, 0.8)
CASES, WORKERS = 8, 2


def main() -> None:
    """Write the CTs, prepare them for the paper's plan, and write the peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_cases(Path(folder) / "mine")
        peak, seconds = watch(Path(folder))
    results = {
        "shape": SHAPE,
        "cases": CASES,
        "workers": WORKERS,
        "peak_gib": round(peak / 2**30, 3),
        "seconds": round(seconds, 1),
        "provenance": provenance(),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(f"peak {results['peak_gib']} GiB, {results['seconds']} s")


def write_cases(root: Path) -> None:
    """Write the cases, half of them labelled: smooth organs with noise, so that files compress like real CTs."""
    z, y, x = np.indices(SHAPE, np.float32)
    organs = ((z - 100) / 60) ** 2 + ((y - 256) / 150) ** 2 + ((x - 256) / 180) ** 2
    labels = (organs < 1).astype(np.uint8) + (organs < 0.3)
    hu = np.where(organs < 2, 40, -1000) + 60 * labels + np.random.default_rng(0).normal(0, 15, SHAPE)
    for part, array in (("images", hu.astype(np.int16)), ("labels", labels.astype(np.uint8))):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING[::-1])
        first = root / part / "case_0.nii.gz"
        first.parent.mkdir(parents=True)
        sitk.WriteImage(image, str(first), useCompression=True, compressionLevel=1)
        for number in range(1, CASES if part == "images" else CASES // 2):
            shutil.copy(first, first.with_name(f"case_{number}.nii.gz"))


def watch(folder: Path) -> tuple[int, float]:
    """Run the command and return its peak memory in bytes and its run time in seconds."""
    settings = ["data=folders", "data.root=mine", "data.names=[liver,tumour]", "data.fold=all", "scale=paper"]
    start, peak = time.monotonic(), 0
    command = [sys.executable, "-m", "dlunet", "prepare", *settings, f"data.workers={WORKERS}"]
    with subprocess.Popen(command, cwd=folder) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(resident, family(process.pid))))
            time.sleep(0.05)
    if process.returncode:
        sys.exit("preparing failed")
    return peak, time.monotonic() - start


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


if __name__ == "__main__":
    main()
