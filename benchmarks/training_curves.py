"""Compares training curves of compiled code with those of PyTorch's layers, and both with double precision.

    python benchmarks/training_curves.py

Trains ``ssl_light`` at ``scale=cpu`` for 300 steps with ten seeds, as compiled code and layer by layer, and compares
the DSC and the loss of the last steps seed by seed. Runs of a seed differ by rounding alone, which training amplifies
until the curves part. How far is shown by ``sup_light``, which is cheap enough to be trained in double precision too:
compiled code should be no further from double precision than the layers are, and no further from the layers than these
are from double precision. (Another number of threads, which changes the rounding of many programs, changes no bit on
either side.) The curve of a run is its loss, averaged over windows of steps.

Takes about twenty minutes on two cores.
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
    "scale=cpu", "loss=dice_ce_first", "scale.first_loss_epochs=1", "scale.supervised_epochs=1",
    "logger=csv", f"trainer.max_epochs={EPOCHS}", "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=1",
    "sampling.num_workers=0",
)  # fmt: skip

#: A C++ compiler that does not exist leaves the network and the losses to PyTorch's layers.
LAYERS = {"CXX": "/nowhere", "PATH": "/nowhere"}
SIDES: dict[str, tuple[dict[str, str], list[str]]] = {
    "double": (LAYERS, ["trainer.precision=64-true"]),
    "layers": (LAYERS, []),
    "compiled": ({}, []),
}


def main() -> None:
    """Train all sides with their seeds, and write curves, differences and scores."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as threads:
        dlunet(["prepare", "data=phantom", "scale=cpu", f"data.root={folder}/phantom"], Path(folder))
        wanted = [
            *product(["sup_light"], SIDES, DOUBLE_SEEDS),
            *product(["ssl_light"], ["layers", "compiled"], SEEDS),
        ]
        found = threads.map(lambda which: train(Path(folder), *which), wanted)
        runs = dict(zip(wanted, found, strict=True))
    ours, layers = ([runs["ssl_light", side, seed] for seed in SEEDS] for side in ("compiled", "layers"))
    result = {
        "sup_light, difference of the curves": {
            f"{one} and {other}": [
                difference(runs["sup_light", one, seed], runs["sup_light", other, seed]) for seed in DOUBLE_SEEDS
            ]
            for one, other in (("compiled", "layers"), ("compiled", "double"), ("layers", "double"))
        },
        "ssl_light, compiled and layers": {
            "difference of the curves": [difference(*pair) for pair in zip(ours, layers, strict=True)],
            "DSC": compare([run["dsc"] for run in ours], [run["dsc"] for run in layers]),
            "last loss": compare([run["curve"][-1] for run in ours], [run["curve"][-1] for run in layers]),
        },
        "runs": {" ".join(map(str, which)): run for which, run in runs.items()},
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps({**result, "provenance": provenance()}, indent=2) + "\n")


def train(folder: Path, experiment: str, side: str, seed: int) -> dict[str, Any]:
    """Train once; returns the mean loss of each window of steps, and the DSC of the last epoch."""
    environment, words = SIDES[side]
    output = folder / f"{experiment}-{side}-{seed}"
    run = [f"experiment={experiment}", *SETTINGS, f"data.root={folder}/phantom", f"seed={seed}", f"output={output}"]
    dlunet(["train", *run, *words], folder, {**environment, "OMP_NUM_THREADS": "1"})
    with (output / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    curve = [round(statistics.fmean(losses[k : k + WINDOW]), 5) for k in range(0, len(losses), WINDOW)]
    dsc = [float(row["val/dsc"]) for row in rows if row.get("val/dsc")][-1]
    print(experiment, side, seed, curve, dsc, flush=True)
    return {"curve": curve, "dsc": round(dsc, 4)}


def dlunet(words: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    """Run a command of this checkout."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    subprocess.run([sys.executable, "-m", "dlunet", *words], cwd=folder, check=True, stdout=sys.stderr, env=settings)


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The mean difference of two curves, relative to the curve."""
    return round(statistics.fmean(abs(a - b) / b for a, b in zip(one["curve"], other["curve"], strict=True)), 5)


def compare(ours: list[float], layers: list[float]) -> dict[str, Any]:
    """The means of both sides and of their differences, with its standard error, and the p of a signed-rank test."""
    differences = [one - other for one, other in zip(ours, layers, strict=True)]
    return {
        "compiled": round(statistics.fmean(ours), 4),
        "layers": round(statistics.fmean(layers), 4),
        "difference": round(statistics.fmean(differences), 4),
        "standard error": round(statistics.stdev(differences) / len(differences) ** 0.5, 4),
        "p": round(float(wilcoxon(differences).pvalue), 4),
    }


if __name__ == "__main__":
    main()
