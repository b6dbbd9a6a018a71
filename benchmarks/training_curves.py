"""Compares training curves of compiled code with those of PyTorch's layers, and both with double precision.

    python benchmarks/training_curves.py

Trains ``ssl_light`` at ``scale=cpu`` for 300 steps: as compiled code and layer by layer with ten seeds, and layer by
layer in double precision with three of them. Runs of the same seed differ by rounding alone, which training amplifies
until the curves part. Double precision rounds so little that it shows how far each side strays by itself: the
difference between compiled code and layers should be no larger than that between layers and double precision. (Another
number of threads, which changes the rounding of many programs, changes no bit on either side.) The curve of a run is
its loss, averaged over windows of steps; the losses of the last window and the DSC are compared seed by seed.

Takes about half an hour on two cores.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from scipy.stats import wilcoxon

from dlunet.provenance import provenance

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "training_curves.json"
SEEDS, DOUBLE_SEEDS, EPOCHS, WINDOW = range(10), range(3), 3, 50
SETTINGS = (
    "experiment=ssl_light", "scale=cpu", "loss=dice_ce_first", "scale.first_loss_epochs=1", "scale.supervised_epochs=1",
    "logger=csv", f"trainer.max_epochs={EPOCHS}", "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=1",
    "sampling.num_workers=0",
)  # fmt: skip

#: A C++ compiler that does not exist leaves the network and the losses to PyTorch's layers.
LAYERS = {"CXX": "/nowhere", "PATH": "/nowhere"}
#: Freed memory is kept; else double precision spends more time in the kernel than in the layers.
KEPT = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
SIDES: dict[str, tuple[dict[str, str], list[str]]] = {
    "double": ({**LAYERS, **KEPT}, ["trainer.precision=64-true"]),
    "layers": (LAYERS, []),
    "compiled": ({}, []),
}


def main() -> None:
    """Train all sides with their seeds, and write curves, differences and scores."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as threads:
        dlunet(["prepare", "data=phantom", "scale=cpu", f"data.root={folder}/phantom"], Path(folder))
        wanted = [*product(["double"], DOUBLE_SEEDS), *product(["layers", "compiled"], SEEDS)]
        found = threads.map(lambda which: train(Path(folder), *which), wanted)
        runs = dict(zip(wanted, found, strict=True))
    result = {
        "difference of the curves": {
            f"{one} and {other}": [difference(runs[one, seed], runs[other, seed]) for seed in DOUBLE_SEEDS]
            for one, other in (("compiled", "layers"), ("compiled", "double"), ("layers", "double"))
        },
        "compiled and layers": {
            "DSC": compare([(runs["compiled", seed]["dsc"], runs["layers", seed]["dsc"]) for seed in SEEDS]),
            "last loss": compare(
                [(runs["compiled", seed]["curve"][-1], runs["layers", seed]["curve"][-1]) for seed in SEEDS]
            ),
        },
        "DSC": {side: [run["dsc"] for (of, _), run in runs.items() if of == side] for side in SIDES},
        "curves": {side: [run["curve"] for (of, _), run in runs.items() if of == side] for side in SIDES},
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps({**result, "provenance": provenance()}, indent=2) + "\n")


def train(folder: Path, side: str, seed: int) -> dict[str, Any]:
    """Train once; returns the mean loss of each window of steps, and the DSC of the last epoch."""
    environment, words = SIDES[side]
    output = folder / f"{side}-{seed}".replace(", ", "-")
    dlunet(
        ["train", *SETTINGS, f"data.root={folder}/phantom", f"seed={seed}", f"output={output}", *words],
        folder,
        {**environment, "OMP_NUM_THREADS": "1"},
    )
    with (output / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    curve = [round(statistics.fmean(losses[k : k + WINDOW]), 5) for k in range(0, len(losses), WINDOW)]
    dsc = [float(row["val/dsc"]) for row in rows if row.get("val/dsc")][-1]
    print(side, seed, curve, dsc, flush=True)
    return {"seed": seed, "curve": curve, "dsc": round(dsc, 4)}


def dlunet(words: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    """Run a command of this checkout."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    subprocess.run([sys.executable, "-m", "dlunet", *words], cwd=folder, check=True, stdout=sys.stderr, env=settings)


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The mean difference of two curves, relative to the curve."""
    return round(statistics.fmean(abs(a - b) / b for a, b in zip(one["curve"], other["curve"], strict=True)), 5)


def compare(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The means of both sides and of their differences, with its standard error, and the p of a signed-rank test."""
    differences = [one - other for one, other in pairs]
    return {
        "compiled": round(statistics.fmean(one for one, _ in pairs), 4),
        "layers": round(statistics.fmean(other for _, other in pairs), 4),
        "difference": round(statistics.fmean(differences), 4),
        "standard error": round(statistics.stdev(differences) / len(pairs) ** 0.5, 4),
        "p": round(float(wilcoxon(differences).pvalue), 4),
    }


if __name__ == "__main__":
    main()
