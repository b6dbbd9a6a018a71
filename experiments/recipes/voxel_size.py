"""Measures what the voxels of a plan let a perfect network score, on the test cases of ``data=gap``.

    python experiments/recipes/voxel_size.py

The true label maps are resampled to a spacing like training labels, and back to the CT's voxels like predictions; both
are compared by FLARE22's rules. Writes the mean DSC of each organ at each spacing to ``results/voxel_size.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dlunet.configs import compose
from dlunet.datasets import Case, dataset_of
from dlunet.evaluation import score_case
from dlunet.inference.resample_to_input import labels_on_grid
from dlunet.labels import FLARE22
from dlunet.preparation.resampling import resample_labels, target_shape
from dlunet.provenance import provenance
from dlunet.volumes import read_labels

RESULTS = Path(__file__).parent / "results" / "voxel_size.json"
SPACINGS = {"scale=demo": (8, 6, 6), "scale=cpu": (6, 5, 5), "finer": (5, 4, 4), "finest": (4, 3, 3)}


def main() -> None:
    """Score the resampled truth of every test case at every spacing, and write the means."""
    dataset = dataset_of(compose("train", ["data=gap", "scale=cpu"]))
    means = {}
    for name, spacing in SPACINGS.items():
        dsc = np.mean([scores_of_truth(case, spacing) for case in dataset.test], axis=0)
        organs = dict(zip((label.name for label in FLARE22), dsc.round(4).tolist(), strict=True))
        means[name] = {"spacing": spacing, "mean": round(dsc.mean(), 4), "organs": organs}
        print(name, spacing, means[name]["mean"], organs)
    RESULTS.write_text(json.dumps({"dsc": means, "provenance": provenance()}, indent=2) + "\n")


def scores_of_truth(case: Case, spacing: Sequence[float]) -> list[float]:
    """The DSC of each organ of the case's own labels, after resampling to ``spacing`` mm and back."""
    truth = read_labels(case.label)
    grid = target_shape(truth.array.shape, truth.spacing, spacing)
    coarse = torch.from_numpy(resample_labels(truth.array, grid)).long()
    logits = torch.nn.functional.one_hot(coarse, len(FLARE22) + 1).movedim(-1, 0).float()
    back = labels_on_grid([logits], grid, truth.array.shape)
    return [score.dsc for score in score_case(back, truth.array, truth.spacing)]


if __name__ == "__main__":
    main()
