"""Checks that our planner and nnU-Net v2's own planner derive the same plans from fingerprints.

    make bench-peers        or, in an environment with nnU-Net:
    python benchmarks/planning_against_nnunet.py

The results are the reference for the test of our planner.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dlunet.preparation import Fingerprint, Intensity
from dlunet.preparation.planning import plan_spacing, plan_topology
from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "planning_against_nnunet.json"

#: Shapes and spacings (z, y, x; mm) of the cases: abdomen with thick slices, heart with 10 mm slices, smaller than a
#: patch, large memory, small memory, resampled abdomen, few slices.
FINGERPRINTS: list[dict[str, Any]] = [
    {
        "shapes": [[129, 512, 512], [200, 512, 512], [90, 512, 512]],
        "spacings": [[2.5, 0.8, 0.8], [1.25, 0.7, 0.7], [5, 0.75, 0.75]],
        "num_classes": 14,
        "memory_gb": 8,
    },
    {
        "shapes": [[24, 320, 320], [20, 256, 256], [30, 320, 300]],
        "spacings": [[10, 1.5, 1.5], [8, 1.4, 1.4], [6, 1.5, 1.5]],
        "num_classes": 4,
        "memory_gb": 8,
    },
    {"shapes": [[60, 70, 64]], "spacings": [[1, 1, 1]], "num_classes": 2, "memory_gb": 8},
    {
        "shapes": [[500, 512, 512], [480, 512, 512]],
        "spacings": [[0.7, 0.7, 0.7], [0.8, 0.8, 0.8]],
        "num_classes": 3,
        "memory_gb": 24,
    },
    {
        "shapes": [[500, 512, 512], [480, 512, 512]],
        "spacings": [[0.7, 0.7, 0.7], [0.8, 0.8, 0.8]],
        "num_classes": 3,
        "memory_gb": 2,
    },
    {
        "shapes": [[83, 243, 243], [70, 200, 210]],
        "spacings": [[2.5, 1.5, 1.5], [3, 1.6, 1.6]],
        "num_classes": 14,
        "memory_gb": 4,
    },
    {
        "shapes": [[12, 512, 512], [14, 512, 512]],
        "spacings": [[5, 0.6, 0.6], [5, 0.62, 0.62]],
        "num_classes": 2,
        "memory_gb": 8,
    },
]


def main() -> None:
    """Compare the plans and write those of nnU-Net."""
    plans = [{**case, "plan": nnunet_plan(**case)} for case in FINGERPRINTS]
    for case in plans:
        ours = our_plan(**{key: case[key] for key in FINGERPRINTS[0]})
        if ours != case["plan"]:
            sys.exit(f"{case}\nbut ours is {ours}")
        print(f"same: {ours}")
    results = {"plans": plans, "nnunetv2": version("nnunetv2"), "provenance": provenance()}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def our_plan(shapes: Any, spacings: Any, num_classes: int, memory_gb: float) -> dict[str, Any]:
    """Our plan, as lists."""
    found = Fingerprint(tuple(map(tuple, shapes)), tuple(map(tuple, spacings)), Intensity(0, 1, 0, 1))
    spacing = plan_spacing(found)
    chosen = plan_topology(found, spacing, num_classes, memory_gb)
    return {
        "spacing": list(spacing),
        "patch_size": list(chosen.patch_size),
        "strides": [list(stride) for stride in chosen.strides],
        "kernel_sizes": [list(size) for size in chosen.kernel_sizes],
        "features": list(chosen.features),
    }


def nnunet_plan(shapes: Any, spacings: Any, num_classes: int, memory_gb: float) -> dict[str, Any]:
    """nnU-Net's ``3d_fullres`` plan, by the methods of its planner on a fingerprint made up here."""
    with tempfile.TemporaryDirectory() as folder:
        _write_dataset(Path(folder), shapes, spacings, num_classes)
        os.environ.update(dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), folder))
        with contextlib.redirect_stdout(io.StringIO()):
            from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as nnunet

            nnunet.nnUNet_raw = nnunet.nnUNet_preprocessed = folder  # read once, at import
            planner = nnunet.ExperimentPlanner("Dataset001_Made", gpu_memory_target_in_gb=memory_gb)
            spacing = planner.determine_fullres_target_spacing()
            sizes = [nnunet.compute_new_shape(n, mm, spacing) for n, mm in zip(shapes, spacings, strict=True)]
            median = np.median(sizes, 0)
            voxels = float(np.prod(median) * len(shapes))
            plan = planner.get_plans_for_configuration(spacing, median, "made", voxels, {})
    network = plan["architecture"]["arch_kwargs"]
    return {
        "spacing": [round(float(mm), 6) for mm in spacing],
        "patch_size": [int(n) for n in plan["patch_size"]],
        "strides": [[int(n) for n in stride] for stride in network["strides"][1:]],
        "kernel_sizes": [[int(n) for n in size] for size in network["kernel_sizes"]],
        "features": [int(n) for n in network["features_per_stage"]],
    }


def _write_dataset(folder: Path, shapes: Any, spacings: Any, num_classes: int) -> None:
    dataset = folder / "Dataset001_Made"
    dataset.mkdir()
    labels = {"background": 0} | {f"organ{k}": k for k in range(1, num_classes)}
    description = {
        "channel_names": {"0": "CT"},
        "labels": labels,
        "numTraining": len(shapes),
        "file_ending": ".nii.gz",
        "dataset": {},
    }
    (dataset / "dataset.json").write_text(json.dumps(description))
    found = {"spacings": spacings, "shapes_after_crop": shapes, "median_relative_size_after_cropping": 1.0}
    (dataset / "dataset_fingerprint.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
