"""Measures the time of a training step of every method, beside supervised training.

    python benchmarks/method_cost.py

Trains the runs of ``experiments/recipes/methods.yaml`` for some steps each, in turn, several times, on the same
abdomens and with all their patches in use. Everything is computed by one thread of one process, so that the time from
one step to the next is that of reading and augmenting patches, of the networks, losses and gradients, and of the
optimiser. Writes the median time of each run, and the median of its ratio to supervised training with the same loss of
labels in the same round.

Takes about a quarter of an hour; the machine should have nothing else to do.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path

from omegaconf import OmegaConf
from training_step import ROOT, measured, run

from dlunet.provenance import provenance

STUDY = ROOT / "experiments" / "recipes" / "methods.yaml"
RESULTS = Path(__file__).parent / "results" / "method_cost.json"
REPEATS, STEPS = 3, 25
SETTINGS = (
    "scale.supervised_epochs=0", "logger=csv", "data.source.validation=0", "data.source.test=0",
    "sampling.num_workers=0", f"sampling.steps_per_epoch={STEPS}", "trainer.max_epochs=1",
)  # fmt: skip


def main() -> None:
    """Measure all runs in turn."""
    os.environ["OMP_NUM_THREADS"] = "1"
    floors = floors_of_runs()
    found: dict[str, list[float]] = {name: [] for name in floors}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(REPEATS):
            for name in list(found)[:: -1 if repeat % 2 else 1]:
                found[name].append(measured(run(ROOT, [*words_of(name), *SETTINGS], Path(folder)))["step_ms"])
                print(name, found[name][-1], flush=True)
    result = {name: summary(found[name], found[floor]) for name, floor in floors.items()}
    RESULTS.write_text(json.dumps({"runs": result, "provenance": provenance()}, indent=2) + "\n")


def floors_of_runs() -> dict[str, str]:
    """The runs of the study but the ceilings, which are supervised training on other cases; and the floor of each."""
    study = OmegaConf.load(STUDY)
    floors = {name: each.floor for each in study.comparisons if "ceiling" in each for name in each.runs}
    return {name: floor for name, floor in floors.items() if "data" not in study.runs[name]}


def words_of(name: str) -> list[str]:
    """The overrides of a run."""
    study = OmegaConf.load(STUDY)
    return [f"{key}={value}" for key, value in {**study.settings, **study.runs[name]}.items()]


def summary(times: list[float], of_floor: list[float]) -> dict[str, object]:
    """The median time and the median ratio, of the times of a run and those of its floor."""
    ratio = statistics.median(mine / floor for mine, floor in zip(times, of_floor, strict=True))
    return {"step_ms": statistics.median(times), "ratio": round(ratio, 2), "all_ms": times}


if __name__ == "__main__":
    main()
