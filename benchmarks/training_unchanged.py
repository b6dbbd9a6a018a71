"""Checks that training gives bit-identical results to another commit.

    python benchmarks/training_unchanged.py COMMIT

Trains four experiments with three seeds for 30 steps at ``scale=tiny``, once with the code of COMMIT and once with this
checkout, and compares every logged loss and the trained weights. Exits with code 1 if any of them differ.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dlunet.provenance import provenance

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "training_unchanged.json"
EXPERIMENTS = ("ssl_light", "sup_light", "ssl_nnunet", "ssl_light_as_published")
SEEDS = (0, 1, 2)
SETTINGS = (
    "scale=tiny",
    "logger=csv",
    "sampling.steps_per_epoch=10",
    "trainer.max_epochs=3",
    "trainer.precision=32-true",
)


def main() -> None:
    """Train on both sides and compare."""
    with tempfile.TemporaryDirectory() as temporary, checkout(sys.argv[1], Path(temporary)) as (commit, before):
        rows = [compare(before, Path(temporary), experiment, seed) for experiment, seed in product(EXPERIMENTS, SEEDS)]
    RESULTS.write_text(json.dumps({"commit": commit, "runs": rows, "provenance": provenance()}, indent=2) + "\n")
    sys.exit(not all(row["same"] for row in rows))


@contextmanager
def checkout(name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Check a commit out into ``folder/before`` while the block runs; yields its full hash and that folder."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.check_output([*git, "rev-parse", name], text=True).strip()
    subprocess.run([*git, "worktree", "add", "--detach", str(folder / "before"), commit], check=True)
    try:
        yield commit, folder / "before"
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(folder / "before")], check=True)


def compare(before: Path, temporary: Path, experiment: str, seed: int) -> dict[str, Any]:
    """Train one experiment with one seed on both sides and compare."""
    sides = [train(code, temporary / name, experiment, seed) for code, name in ((before, "old"), (ROOT, "new"))]
    row = {"experiment": experiment, "seed": seed, "same": sides[0] == sides[1], "steps": len(sides[1]["losses"])}
    row |= {"last_loss": sides[1]["losses"][-1]["train/loss"], "weights": sides[1]["weights"]}
    print(row, flush=True)
    return row


def train(code: Path, folder: Path, experiment: str, seed: int) -> dict[str, Any]:
    """Train with the code of a checkout; returns the logged losses as text and a digest of the network weights."""
    folder.mkdir(exist_ok=True)
    output = folder / f"{experiment}-{seed}"
    words = ["train", f"experiment={experiment}", f"seed={seed}", f"output={output}", *SETTINGS]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    subprocess.run([sys.executable, "-m", "dlunet", *words], cwd=folder, env=environment, check=True, stdout=sys.stderr)
    with (output / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if is_loss(k) and v} for row in csv.DictReader(file)]
    state = torch.load(output / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    digest = hashlib.sha256()
    for name, value in state.items():
        if name.startswith("networks."):
            digest.update(value.numpy().tobytes())
    return {"losses": [row for row in rows if row], "weights": digest.hexdigest()}


def is_loss(column: str) -> bool:
    """Whether a column contains losses; versions log rates and norms differently, and the weights show them."""
    return column.startswith("train/") and not column.startswith(("train/lr", "train/gradient_norm"))


if __name__ == "__main__":
    main()
