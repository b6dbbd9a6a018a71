"""Times DSC and NSD of 13 organs on 512×512×129 voxels beside the ``surface-distance`` package.

    python benchmarks/scoring_against_surface_distance.py

The reference is a synthetic abdomen, the prediction the same one shifted by a voxel and with half the resolution, like
that of a network with larger voxels. Compared are, in turns, one case in memory, and eight cases from files to scores:
DLUNet with two processes, the package with one and with two. Both sides must give the same scores to four decimals. The
memory is that of the largest worker process.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import SimpleITK as sitk

from dlunet.evaluation import OrganScore, evaluate_folder, score_case
from dlunet.evaluation.scores import MISSED_BELOW_DSC
from dlunet.labels import FLARE22

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from surface_distance import (
        compute_dice_coefficient,
        compute_surface_dice_at_tolerance,
        compute_surface_distances,
    )

RESULTS = Path(__file__).parent / "results" / "scoring_against_surface_distance.json"
SHAPE = (129, 512, 512)
CASES, WORKERS = 8, 2
REPEATS, REPEATS_OF_ALL = 5, 3


def main() -> None:
    """Write the cases, check that both sides agree, time them, and write the medians."""
    from dlunet.provenance import provenance  # not at the top: every worker process imports this file, and this is slow

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(CASES):
            write_case(folder, seed)
        files = sorted((folder / "labels").iterdir())
        case = read(files[0])
        one = in_turns(REPEATS, ours=partial(score_case, *case), theirs=partial(theirs, *case))
        sides = {
            "ours": partial(all_ours, folder),
            "theirs": lambda: list(map(theirs_from_files, files)),
            "theirs_parallel": partial(all_theirs, files),
        }
        every = in_turns(REPEATS_OF_ALL, **sides)
        peak = peak_memory(partial(all_ours, folder))
    results = {
        "shape": SHAPE,
        "one_case": one | {"ratio": round(one["theirs"] / one["ours"], 2)},
        "cases": CASES,
        "workers": WORKERS,
        "all_cases": every
        | {
            "ratio": round(every["theirs"] / every["ours"], 2),
            "ratio_parallel": round(every["theirs_parallel"] / every["ours"], 2),
        },
        "worker_peak_gib": round(peak / 2**30, 2),
        "surface-distance": version("surface-distance"),
        "provenance": provenance(),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def write_case(folder: Path, seed: int) -> None:
    """Write a reference and a prediction."""
    from dlunet.phantom import make_phantom

    phantom = make_phantom(seed, shape=SHAPE)
    coarse = phantom.labels[::2, ::2, ::2].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    prediction = np.roll(coarse[tuple(map(slice, SHAPE))], (1, 1, 1), (0, 1, 2))
    for part, array in (("labels", phantom.labels), ("predictions", prediction)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(phantom.spacing[::-1])
        (folder / part).mkdir(exist_ok=True)
        sitk.WriteImage(image, str(folder / part / f"case_{seed}.nii.gz"), useCompression=True, compressionLevel=1)


def in_turns(repeats: int, **sides: Callable[[], object]) -> dict[str, float]:
    """The median seconds of each side, measured in turns; all sides must return the same."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        found = []
        for side, run in sides.items():
            start = time.perf_counter()
            found.append(run())
            seconds[side].append(time.perf_counter() - start)
        assert all(scores == found[0] for scores in found), "the sides differ"
    return {side: round(median(times), 3) for side, times in seconds.items()}


def read(label: Path) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Prediction, reference and spacing of a case."""
    reference = sitk.ReadImage(str(label))
    prediction = sitk.ReadImage(str(label.parents[1] / "predictions" / label.name))
    return *map(sitk.GetArrayFromImage, (prediction, reference)), reference.GetSpacing()[::-1]


def theirs(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> list[OrganScore]:
    """Scores of one case by the package, with FLARE22's rules around it."""
    scores = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for organ in FLARE22:
            masks = [reference == organ.id, prediction == organ.id]
            if not masks[0].any() or not masks[1].any():
                scores.append(OrganScore(organ.name, *2 * (float(not masks[0].any() and not masks[1].any()),)))
                continue
            if organ.tubular:
                slices = np.flatnonzero(masks[0].any((1, 2)))
                masks = [mask[slices[0] : slices[-1]] for mask in masks]
            dsc, nsd = compute_dice_coefficient(*masks), 0.0
            if dsc >= MISSED_BELOW_DSC:
                distances = compute_surface_distances(*masks, spacing)
                nsd = compute_surface_dice_at_tolerance(distances, organ.nsd_tolerance_mm)
            scores.append(OrganScore(organ.name, round(float(dsc), 4), round(float(nsd), 4)))
    return scores


def all_ours(folder: Path) -> list[list[OrganScore]]:
    """Scores of all cases by ``dlunet evaluate``, in parallel."""
    table = evaluate_folder(folder / "predictions", folder / "labels", folder / "scores", workers=WORKERS)
    rows = list(map(OrganScore._make, table[["organ", "dsc", "nsd"]].itertuples(index=False, name=None)))
    return [rows[first : first + len(FLARE22)] for first in range(0, len(rows), len(FLARE22))]


def theirs_from_files(label: Path) -> list[OrganScore]:
    """Scores of one case by the package, with reading it."""
    return theirs(*read(label))


def all_theirs(files: list[Path]) -> list[list[OrganScore]]:
    """Scores of all cases by the package, in parallel."""
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        return list(pool.map(theirs_from_files, files))


def peak_memory(run: Callable[[], object]) -> int:
    """The largest resident memory in bytes of a process that this one starts while it runs something."""
    from process_memory import family, resident

    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max([peak, *map(resident, family(os.getpid())[1:])])

    thread = threading.Thread(target=watch)
    thread.start()
    run()
    done.set()
    thread.join()
    return peak


if __name__ == "__main__":
    main()
