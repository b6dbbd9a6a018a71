"""Measures the peak memory of ``dlunet prepare`` with two processes on eight CTs of 512×512×200.

    python benchmarks/preparation_memory.py

The memory is that of the command and all its child processes, see ``process_memory.py``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from process_memory import peak_of_family

from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "preparation_memory.json"
SHAPE, SPACING = (200, 512, 512), (1.6, 0.8, 0.8)
CASES, WORKERS = 8, 2


def main() -> None:
    """Write the CTs, prepare them for the paper's plan, and write the peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_cases(Path(folder) / "mine")
        settings = ["data=folders", "data.root=mine", "data.names=[liver,tumour]", "data.fold=all", "scale=paper"]
        start = time.monotonic()
        peak = peak_of_family(["-m", "dlunet", "prepare", *settings, f"data.workers={WORKERS}"], Path(folder))
        seconds = time.monotonic() - start
    results = {
        "shape": SHAPE,
        "cases": CASES,
        "workers": WORKERS,
        "peak_gib": peak,
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


if __name__ == "__main__":
    main()
