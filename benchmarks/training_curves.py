"""Compares training curves of compiled code with those of PyTorch's layers.

    python benchmarks/training_curves.py

Trains ``ssl_light`` at ``scale=cpu`` for 300 steps with three seeds: as compiled code, layer by layer, and both once
more with a learning rate that differs in the eighth digit, which shows how far rounding alone drives a run. (The number
of threads changes nothing on either side.) The curve of a run is its loss, averaged over windows of steps. The
differences between compiled code and layers are compared with those that the learning rate makes, and so are those of
the DSC.
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

from dlunet.provenance import provenance

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "training_curves.json"
SEEDS, EPOCHS, WINDOW = (0, 1, 2), 3, 50
SETTINGS = (
    "experiment=ssl_light", "scale=cpu", "loss=dice_ce_first", "scale.first_loss_epochs=1", "scale.supervised_epochs=1",
    "logger=csv", f"trainer.max_epochs={EPOCHS}", "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=1",
    "sampling.num_workers=0",
)  # fmt: skip

#: A C++ compiler that does not exist leaves the network and the losses to PyTorch's layers.
LAYERS = {"CXX": "/nowhere", "PATH": "/nowhere"}
NUDGED = "optimizer.algorithm.lr=0.020000001"
SIDES: dict[str, tuple[dict[str, str], list[str]]] = {
    "compiled": ({}, []),
    "layers": (LAYERS, []),
    "compiled, nudged": ({}, [NUDGED]),
    "layers, nudged": (LAYERS, [NUDGED]),
}


def main() -> None:
    """Train all sides with all seeds, and write curves, differences and scores."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as threads:
        dlunet(["prepare", "data=phantom", "scale=cpu", f"data.root={folder}/phantom"], Path(folder))
        wanted = list(product(SIDES, SEEDS))
        found = threads.map(lambda which: train(Path(folder), *which), wanted)
        runs = dict(zip(wanted, found, strict=True))
    result = {
        "difference of the curves": {
            f"{one} and {other}": [difference(runs[one, seed], runs[other, seed]) for seed in SEEDS]
            for one, other in (("compiled", "layers"), ("compiled", "compiled, nudged"), ("layers", "layers, nudged"))
        },
        "final DSC": {side: [runs[side, seed]["dsc"] for seed in SEEDS] for side in SIDES},
        "curves": {side: [runs[side, seed]["curve"] for seed in SEEDS] for side in SIDES},
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


if __name__ == "__main__":
    main()
