"""Measures how large each organ is in the predictions of a study, relative to the labels of the test cases.

    python -m experiments.recipes.volumes methods

The voxels of each organ are summed over test cases and seeds, and divided by those of the labels: above 1, a network
finds too many. Writes ``results/STUDY_volumes.json``; runs whose predictions are not here keep what it has of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dlunet.configs import compose
from dlunet.datasets import Case, dataset_of
from dlunet.labels import FLARE22
from dlunet.provenance import provenance
from dlunet.run_layout import RunLayout
from dlunet.volumes import count_labels, read_labels
from experiments.recipes import study as recipes


def main() -> None:
    """Measure the runs of the study named on the command line of which all seeds are here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = {path.stem: recipes.load(path.stem) for path in sorted(recipes.HERE.glob("*.yaml"))}
    trained = [name for name, study in studies.items() if recipes.command_of(study) == "train"]
    parser.add_argument("study", choices=trained)
    name = parser.parse_args().study
    study, results = studies[name], recipes.RESULTS / f"{name}_volumes.json"
    recipes.check_settings(name, study)
    earlier = json.loads(results.read_text())["predicted_per_true"] if results.exists() else {}
    measured = {run: earlier[run] for run in study.runs if run in earlier}
    for run in study.runs:
        folders = [recipes.trainings(study, name, run, seed)[run] for seed in study.seeds]
        if all(map(recipes.is_finished, folders)):
            cases = dataset_of(compose("train", recipes.trained_with(study, name, run))).test
            relative = predicted_per_true(cases, [RunLayout(folder).predictions for folder in folders])
            organs = dict(zip((label.name for label in FLARE22), relative.round(2).tolist(), strict=True))
            measured[run] = {"median": round(float(np.median(relative)), 2), "organs": organs}
            print(run, measured[run])
    results.write_text(json.dumps({"predicted_per_true": measured, "provenance": provenance()}, indent=2) + "\n")


def predicted_per_true(cases: Sequence[Case], predictions: Sequence[Path]) -> np.ndarray:
    """Predicted voxels of each organ per true voxel, of all cases in all folders of predictions."""
    predicted = sum(voxels(folder / f"{case.name}.nii.gz") for case in cases for folder in predictions)
    return predicted / (len(predictions) * sum(voxels(case.label) for case in cases))


def voxels(path: Path) -> np.ndarray:
    """The number of voxels of each organ in a label map."""
    return count_labels(read_labels(path).array, FLARE22.num_classes)[1:]


if __name__ == "__main__":
    main()
