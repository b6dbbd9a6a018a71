"""Compares training curves of compiled code with those of PyTorch's layers.

    python benchmarks/training_curves.py

Trains ``ssl_light`` at ``scale=cpu`` for 300 steps with three seeds: as compiled code, layer by layer, and layer by
layer on one thread, which rounds otherwise. The curve of a run is its loss, averaged over windows of steps. The
difference between compiled code and layers is compared with the one between the two numbers of threads, and so is that
of the final DSC on the validation cases.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dlunet.provenance import provenance

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "training_curves.json"
SEEDS, EPOCHS, WINDOW = (0, 1, 2), 3, 50
SETTINGS = (
    "experiment=ssl_light", "scale=cpu", "loss=dice_ce_first", "scale.first_loss_epochs=1", "scale.supervised_epochs=1",
    "logger=csv", f"trainer.max_epochs={EPOCHS}", "trainer.check_val_every_n_epoch=1", "+trainer.log_every_n_steps=1",
)  # fmt: skip

#: A C++ compiler that does not exist leaves the network and the losses to PyTorch's layers.
LAYERS = {"CXX": "/nowhere", "PATH": "/nowhere"}
SIDES: dict[str, dict[str, str]] = {
    "compiled": {},
    "layers": LAYERS,
    "layers, one thread": {**LAYERS, "OMP_NUM_THREADS": "1"},
}


def main() -> None:
    """Train all sides with all seeds, and write curves, differences and scores."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: [train(Path(folder), name, seed) for seed in SEEDS] for name in SIDES}
    result = {
        "difference of the curves, compiled and layers": differences(runs["compiled"], runs["layers"]),
        "difference of the curves, two threads and one": differences(runs["layers"], runs["layers, one thread"]),
        "final DSC": {name: [run["dsc"] for run in of_side] for name, of_side in runs.items()},
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps({**result, "runs": runs, "provenance": provenance()}, indent=2) + "\n")


def train(folder: Path, side: str, seed: int) -> dict[str, Any]:
    """Train once; returns the mean loss of each window of steps, and the DSC of the last epoch."""
    output = folder / f"{side}-{seed}"
    words = [*SETTINGS, f"data.root={folder}/phantom", f"seed={seed}", f"output={output}"]
    subprocess.run(
        [sys.executable, "-m", "dlunet", "train", *words],
        cwd=folder, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(ROOT), **SIDES[side]},
    )  # fmt: skip
    with (output / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    curve = [round(statistics.fmean(losses[k : k + WINDOW]), 5) for k in range(0, len(losses), WINDOW)]
    dsc = [float(row["val/dsc"]) for row in rows if row.get("val/dsc")][-1]
    print(side, seed, curve, dsc, flush=True)
    return {"seed": seed, "curve": curve, "dsc": round(dsc, 4)}


def differences(ones: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
    """The mean absolute difference of the curves of each seed, relative to the curve."""
    return [
        round(statistics.fmean(abs(a - b) / b for a, b in zip(one["curve"], other["curve"], strict=True)), 5)
        for one, other in zip(ones, others, strict=True)
    ]


if __name__ == "__main__":
    main()
