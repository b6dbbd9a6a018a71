"""Compares the CPU time of a patch, by part, with another commit.

    python benchmarks/patch_cost.py COMMIT

Draws patches of ``scale=cpu`` and ``scale=paper`` in one thread, alternately with the code of COMMIT and with this
checkout: without augmentation, with each transform alone where it acts, and as configured. The cost of a transform is
what it adds to a patch without augmentation. Stops if the two draw different patches, apart from rounding.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from training_unchanged import ROOT, checkout

from dlunet.preparation.store import save_prepared
from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "patch_cost.json"
REPEATS = 7

#: The shape of the volume, and how many patches are drawn: with a transform that acts on all, and as configured.
SCALES = {"cpu": ((90, 80, 80), 60, 400), "paper": ((200, 256, 256), 4, 40)}

#: Uses only what both sides have in common.
MEASURE = """
import json, sys, time
from pathlib import Path
import hydra, torch
from dlunet.configs import CONFIGS
from dlunet.preparation import PreparedCase
from dlunet.sampling import Augmentation, ClassBalancedSampler, PatchDataset

torch.set_num_threads(1)
scale, folder, acting, configured = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
    config = hydra.compose("train", [f"scale={scale}"])

sums = []

def cost(count, labelled, augmentation):
    sampler = ClassBalancedSampler(config.plan.patch_size, config.sampling.foreground_fraction)
    cases, seed = [PreparedCase.open(folder)], [0, 0, 0, 0]
    patches = PatchDataset(cases, [0] * (count + 3), sampler, augmentation, config.plan.spacing, labelled, seed)
    for k in range(count, count + 3):
        sums.append(patches[k].image.data.double().sum().item())
    begin = time.process_time()
    for k in range(count):
        patches[k]
    return (time.process_time() - begin) / count * 1000

def built(node, **changed):
    return hydra.utils.instantiate({**node, **changed}, _convert_="all")

whole, read = config.augmentation, cost(5 * acting, True, Augmentation())
parts = {"affine": Augmentation(built(whole.affine), 1.0)}
for node in whole.intensity:
    name = node._target_.rpartition(".")[2] + (" inverted" if node.get("inverted") else "")
    parts[name] = Augmentation(intensity=[built(node, p=1.0)])
if "flip" in whole:
    parts["flip"] = Augmentation(flip=built(whole.flip))
found = {"read": read} | {name: cost(acting, True, part) - read for name, part in parts.items()}
for kind, labelled in (("labelled patch", True), ("unlabelled patch", False)):
    found[kind] = cost(configured, labelled, built(whole))
print(json.dumps([found, sums]))
"""


def main() -> None:
    """Measure both sides in turn at both scales."""
    found: dict[str, Any] = {scale: {"before": [], "now": []} for scale in SCALES}
    drawn: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary, checkout(sys.argv[1], Path(temporary)) as (commit, before):
        sides = {"before": before, "now": ROOT}
        for scale, (shape, *_) in SCALES.items():
            write_case(Path(temporary) / scale, shape)
        for repeat in range(REPEATS):
            for scale in SCALES:
                for name in list(sides)[:: -1 if repeat % 2 else 1]:  # each side goes first as often as the other
                    costs, sums = run(sides[name], Path(temporary) / scale, scale)
                    if not np.allclose(sums, drawn.setdefault(scale, sums), rtol=1e-3, atol=1):
                        sys.exit(f"{scale}: the two commits draw different patches")
                    found[scale][name].append(costs)
    results = {scale: summary(**runs) for scale, runs in found.items()}
    print(json.dumps(results, indent=2))
    RESULTS.write_text(json.dumps({"commit": commit, "cpu_ms": results, "provenance": provenance()}, indent=2) + "\n")


def write_case(folder: Path, shape: tuple[int, int, int]) -> None:
    """Write a prepared case: noise with three organs."""
    label = np.zeros(shape, np.uint8)
    for organ in (1, 2, 3):
        label[20 * organ : 20 * organ + 15, 20:50, 10 * organ : 10 * organ + 30] = organ
    save_prepared(folder, np.random.default_rng(0).normal(size=shape).astype(np.float32), label, {})


def run(code: Path, folder: Path, scale: str) -> tuple[dict[str, float], list[float]]:
    """The milliseconds of each part with the code of a checkout, and the sums of some of the patches."""
    counts = [str(count) for count in SCALES[scale][1:]]
    words = [sys.executable, "-c", MEASURE, scale, str(folder), *counts]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.check_output(words, env=environment, cwd=folder, stderr=subprocess.DEVNULL))


def summary(before: list[dict[str, float]], now: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """For each part the median of both sides, and that of the paired ratios."""
    return {
        part: {
            "before": round(statistics.median(run[part] for run in before), 3),
            "now": round(statistics.median(run[part] for run in now), 3),
            "ratio": round(statistics.median(b[part] / a[part] for a, b in zip(before, now, strict=True)), 3),
        }
        for part in now[0]
    }


if __name__ == "__main__":
    main()
