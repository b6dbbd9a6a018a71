"""Estimates what the paper's tables cost on FLARE22: hours on GPUs, and disk.

    python experiments/paper_tables/expected_cost.py               # with the authors' GPUs
    python experiments/paper_tables/expected_cost.py --step 0.9    # with the seconds that a step takes on yours

The step is that of ``ssl_light`` at ``scale=paper`` on one GPU; ``benchmarks/training_on_gpu.py`` measures it. The
paper states 276 hours on two GPUs. Other experiments are estimated by their passes through a network: a step of cross
pseudo supervision has, for each of two networks, two forward and backward passes and two forward passes for
pseudo-labels; a supervised one has one forward and backward pass of one network. A backward pass counts as two forward
ones. nnU-Net's network is counted like the light one: it has more arithmetic, but fewer layers that are slow. GPUs that
share a training are counted as if they lost no time to each other. Prints the tables; those of the authors' GPUs are in
``docs/reproduce.md`` and ``docs/scaling.md`` and written to ``results/expected_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Collection
from pathlib import Path

from make_table import trained

from dlunet.configs import compose
from dlunet.provenance import provenance
from dlunet.reporting.paper import TITLES

RESULTS = Path(__file__).parent / "results" / "expected_cost.json"
#: Table 2 of the paper: hours of ``ssl_light``, on this many GPUs.
HOURS, AUTHORS_GPUS = 276, 2
SEEDS, GPUS = 3, (1, 4)
#: GPUs that share one training.
SHARING = (1, 2, 4, 8)
#: Passes of a step, in forward passes of one network.
PASSES = {"sup": 3, "ssl": 2 * (2 * 3 + 2)}
#: FLARE22's cases, and a large field of view in mm (z, y, x).
CASES, FIELD_OF_VIEW = {"labelled": 50, "unlabelled": 2000, "validation": 50}, (400, 400, 400)
VOXEL_BYTES = {"labelled": 3, "unlabelled": 2, "validation": 3}  # 16-bit images, 8-bit labels
#: What the tables are trained with, as `make table3 DATA=flare22 ROOT=FLARE22 SCALE=paper` does.
SETTINGS = ("scale=paper", "data=flare22", "data.root=FLARE22")


def main() -> None:
    """Print and write the estimate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=float, help="seconds of a step of ssl_light on one GPU")
    arguments = parser.parse_args()
    if arguments.step is not None and not 0 < arguments.step < math.inf:
        parser.error(f"--step: found {arguments.step}; expected the seconds of a step, such as 0.9")
    config = compose("train", ["experiment=ssl_light", *SETTINGS])
    steps = config.trainer.max_epochs * config.sampling.steps_per_epoch
    step = arguments.step or HOURS * 3600 / steps * AUTHORS_GPUS
    rows = hours_of_tables(steps, step)
    voxels = math.prod(mm / size for mm, size in zip(FIELD_OF_VIEW, config.plan.spacing, strict=True))
    disk = sum(CASES[part] * VOXEL_BYTES[part] for part in CASES) * voxels / 1e9
    one = {kind: [round(hours_of(kind, steps, step) / count) for count in SHARING] for kind in PASSES}
    result = {
        "step_seconds": round(step, 3),
        "steps": steps,
        "seeds": SEEDS,
        "hours": rows,
        "hours_of_one_training": {"gpus": SHARING, **one},
        "prepared_gb": round(disk),
    }
    print(as_markdown(rows))
    for kind, of_kind in one.items():
        print(f"one training, {kind}, on {_list(SHARING)} GPUs: {_list(of_kind)} hours")
    print(f"prepared cases: {disk:.0f} GB; step of ssl_light on one GPU: {step:.2f} s")
    if arguments.step is None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**result, "provenance": provenance()}, indent=2) + "\n")


def hours_of(kind: str, steps: int, step: float) -> float:
    """The hours of one training on one GPU, of a kind in ``PASSES``."""
    return steps * step / 3600 * PASSES[kind] / PASSES["ssl"]


def hours_of_tables(steps: int, step: float) -> dict[str, dict[str, float]]:
    """The trainings and hours of each table, and of all, which share some."""
    of_tables = {number: set(trained(number, SETTINGS)) for number in TITLES}
    rows = {f"table {number}": hours(experiments, steps, step) for number, experiments in of_tables.items()}
    return {**rows, "all": hours(set().union(*of_tables.values()), steps, step)}


def hours(experiments: Collection[str], steps: int, step: float) -> dict[str, float]:
    """Trainings, and hours by the number of GPUs, each of which trains one experiment at a time."""
    each = [hours_of("ssl" if name.startswith("ssl") else "sup", steps, step) for name in experiments]
    trainings = [hour for hour in each for _ in range(SEEDS)]
    return {"trainings": len(trainings)} | {f"gpus_{count}": round(makespan(trainings, count)) for count in GPUS}


def makespan(trainings: list[float], gpus: int) -> float:
    """The time until the last training ends, longest ones first, each on the GPU that is free first."""
    busy = [0.0] * gpus
    for hour in sorted(trainings, reverse=True):
        busy[busy.index(min(busy))] += hour
    return max(busy)


def as_markdown(rows: dict[str, dict[str, float]]) -> str:
    """The table of the document."""
    lines = ["| | trainings | days on one GPU | days on four |", "| --- | --- | --- | --- |"]
    for name, row in rows.items():
        days = " | ".join(f"{row[f'gpus_{count}'] / 24:.0f}" for count in GPUS)
        lines.append(f"| {name} | {row['trainings']:.0f} | {days} |")
    return "\n".join(lines)


def _list(numbers: Collection[int]) -> str:
    return ", ".join(map(str, numbers))


if __name__ == "__main__":
    main()
