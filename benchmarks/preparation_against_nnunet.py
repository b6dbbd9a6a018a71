"""Compares preparation with nnU-Net v2's own functions: values and run time.

    make bench-peers        or, in an environment with both:
    python benchmarks/preparation_against_nnunet.py [--repeats 5]

For every case, the normalised image values (before and after storing) and the labels of both sides are compared first.
Then both sides are timed in turn in this process: resampling alone, and the complete case from file to arrays. The
results are written to benchmarks/results/preparation_against_nnunet.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from scipy import ndimage

from dlunet.phantom import make_phantom
from dlunet.preparation import Intensity, Plan, PreparedCase, prepare_image, resample, resample_labels
from dlunet.preparation.resampling import separate_axis, target_shape
from dlunet.preparation.store import save_prepared
from dlunet.provenance import provenance
from dlunet.volumes import read_ct, read_labels

RESULT = Path(__file__).parent / "results" / "preparation_against_nnunet.json"
INTENSITY = Intensity(-900.0, 280.0, 70.0, 120.0)
SPACING = (2.5, 1.5, 1.5)

#: By name: shape (z, y, x) in voxels and spacing (z, y, x) in mm.
CASES = {
    "512×512×129": ((129, 512, 512), (1.6, 0.57, 0.57)),
    "5 mm slices": ((48, 512, 512), (5.0, 0.8, 0.8)),
    "smaller than the patch": ((20, 90, 101), (3.0, 1.7, 1.7)),
}

Arrays = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Compare and time both sides, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    peers = {name: version(name) for name in ("nnunetv2", "batchgenerators", "scikit-image")}
    result: dict[str, Any] = {"repeats": repeats, "spacing": SPACING, "cases": {}, "peers": peers, **provenance()}
    with tempfile.TemporaryDirectory() as folder:
        for name, (shape, spacing) in CASES.items():
            image, label = write_case(Path(folder), shape, spacing)
            result["cases"][name] = measured = {**compare(image, label), **time_both(image, label, repeats)}
            print(name, json.dumps(measured, indent=2))
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def write_case(folder: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> tuple[Path, Path]:
    """Write a synthetic abdomen, resized to a shape, with added noise."""
    phantom = make_phantom(1, "varied")
    factors = [m / n for n, m in zip(phantom.image.shape, shape, strict=True)]
    noise = np.random.default_rng(0).normal(0, 15, shape)
    image = ndimage.zoom(phantom.image.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True) + noise
    label = np.zeros(shape, np.uint8)
    for organ in range(1, 14):  # smooth contours, as if drawn on the fine grid
        mask = ndimage.zoom(
            (phantom.labels == organ).astype(np.float32), factors, order=3, mode="nearest", grid_mode=True
        )
        label[mask >= 0.5] = organ
    paths = folder / "image.nii.gz", folder / "label.nii.gz"
    for path, array in zip(paths, (image.round().astype(np.int16), label.astype(np.uint8)), strict=True):
        stored = sitk.GetImageFromArray(array)
        stored.SetSpacing(spacing[::-1])
        sitk.WriteImage(stored, str(path))
    return paths


def nnunet_case(image: Path, label: Path) -> Arrays:
    """Prepare a case with nnU-Net's functions, as called by its preprocessor (no cropping: no voxel is 0)."""
    reader = SimpleITKIO()
    data, properties = reader.read_images([str(image)])
    segmentation, _ = reader.read_seg(str(label))
    spacing = properties["spacing"]
    data = nnunet_normalise(data.astype(np.float32))
    return nnunet_resample(data, spacing, is_seg=False)[0], nnunet_resample(segmentation, spacing, is_seg=True)[0]


def nnunet_normalise(data: np.ndarray) -> np.ndarray:
    """Clip and normalise with nnU-Net's class."""
    names = {"percentile_00_5": INTENSITY.lower, "percentile_99_5": INTENSITY.upper}
    properties = {"mean": INTENSITY.mean, "std": INTENSITY.std, **names}
    return CTNormalization(use_mask_for_norm=False, intensityproperties=properties).run(data)


def nnunet_resample(data: np.ndarray, spacing: list[float], is_seg: bool) -> np.ndarray:
    """Resample (1, z, y, x) with the arguments of nnU-Net's default plans."""
    shape = compute_new_shape(data.shape[1:], spacing, SPACING)
    order = 1 if is_seg else 3
    return resample_data_or_seg_to_shape(
        data, shape, spacing, SPACING, is_seg=is_seg, order=order, order_z=0, force_separate_z=None
    )


def dlunet_case(image: Path, label: Path) -> Arrays:
    """Prepare a case with DLUNet's functions."""
    ct, labels = read_ct(image), read_labels(label)
    prepared = prepare_image(ct.array, ct.spacing, Plan.of(SPACING, (1, 1, 1), INTENSITY))[0]
    return prepared, resample_labels(labels.array, prepared.shape, separate_axis(ct.spacing, SPACING))


def compare(image: Path, label: Path) -> dict[str, float]:
    """The largest difference in normalised units, before storing and as stored, and the fraction of equal labels."""
    (theirs, their_labels), (ours, our_labels) = nnunet_case(image, label), dlunet_case(image, label)
    if theirs.shape != ours.shape:
        raise SystemExit(f"{image}: nnU-Net's shape is {theirs.shape}, ours {ours.shape}")
    measured = {
        "largest_difference": float(np.abs(theirs - ours).max()),
        "largest_difference_stored": float(np.abs(theirs - as_stored(ours)).max()),
        "equal_labels": float((their_labels == our_labels).mean()),
    }
    stored_alike = measured["largest_difference_stored"] <= 1e-3
    if measured["largest_difference"] > 1e-4 or not stored_alike or measured["equal_labels"] < 0.9999:
        raise SystemExit(f"{image}: the two sides differ: {measured}; they are not timed")
    return measured


def as_stored(image: np.ndarray) -> np.ndarray:
    """An image after a round trip through a prepared case on disk."""
    with tempfile.TemporaryDirectory() as folder:
        save_prepared(Path(folder) / "case", image, None, {})
        case = PreparedCase.open(Path(folder) / "case")
        return case.image[0] * np.float32(case.quantisation_step)


def time_both(image: Path, label: Path, repeats: int) -> dict[str, Any]:
    """Seconds of both sides, measured in turn, and the ratio of the medians."""
    ct = read_ct(image)
    data = nnunet_normalise(ct.array[None].copy())
    shape, axis = target_shape(ct.array.shape, ct.spacing, SPACING), separate_axis(ct.spacing, SPACING)
    return {
        "resampling": side_by_side(
            lambda: nnunet_resample(data, list(ct.spacing), is_seg=False),
            lambda: resample(data, shape, 3, axis),
            repeats,
        ),
        "case": side_by_side(lambda: nnunet_case(image, label), lambda: dlunet_case(image, label), repeats),
    }


def side_by_side(theirs: Callable[[], Any], ours: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Time two functions in turn."""
    seconds: dict[str, list[float]] = {"nnunet": [], "dlunet": []}
    for _ in range(repeats):
        for name, function in (("nnunet", theirs), ("dlunet", ours)):
            start = time.perf_counter()
            function()
            seconds[name].append(round(time.perf_counter() - start, 4))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "medians": medians, "ratio": round(medians["nnunet"] / medians["dlunet"], 2)}


if __name__ == "__main__":
    main()
