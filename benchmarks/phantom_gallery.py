"""Draws a gallery of synthetic abdomens beside a real CT, or times the generation of sixty of them.

    python benchmarks/phantom_gallery.py picture [--real CT.nii.gz] [--output gallery.png]
    python benchmarks/phantom_gallery.py time [--cases 60] [--workers 2]

The gallery shows axial and coronal slices of six synthetic CTs without and with their labels; the last column is the
real CT and is omitted if there is none. The timing is written to benchmarks/results/phantom_generation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import matplotlib
import numpy as np
import scipy
import SimpleITK as sitk

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from dlunet.labels import FLARE22
from dlunet.phantom import make_phantom, write_phantoms

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REAL_CT = ROOT.parent / "shared" / "data" / "ct_abdomen_3mm.nii.gz"

#: The cases shown, as (profile, seed): two like the labelled cases, four like the others.
CASES = (("labelled", 1), ("labelled", 28), ("varied", 1), ("varied", 2), ("varied", 19), ("varied", 16))

#: The usual abdominal window in HU: level 40, width 400.
WINDOW = (-160, 240)

#: Height and width of every panel in mm.
SHOWN_MM = (270, 370)

_OPACITY = 0.5


def draw_gallery(output: Path, real: Path) -> None:
    """Write the gallery: one column per CT; rows upper axial, axial, the same with labels, coronal, with labels."""
    columns = []
    for profile, seed in CASES:
        phantom = make_phantom(seed, profile)  # type: ignore[arg-type]
        title = f"{profile}, {phantom.phase}\n" + _wrapped(phantom.findings)
        columns.append((title, phantom.image, phantom.labels, phantom.spacing))
    if real.exists():
        columns.append(("a real CT, non-contrast", *_read_real(real)))
    else:
        print(f"{real}: no such file, so the picture has no real CT; give one with --real")
    figure, axes = plt.subplots(5, len(columns), figsize=(2.75 * len(columns), 11.4), facecolor="black")
    for column, (title, image, labels, spacing) in zip(axes.T, columns, strict=True):
        upper, middle, front = _telling_slices(labels)
        column[0].set_title(title, color="white", fontsize=8.5)
        _show(column[0], image[upper], None, spacing[1:])
        _show(column[1], image[middle], None, spacing[1:])
        _show(column[2], image[middle], labels[middle], spacing[1:])
        _show(column[3], image[::-1, front], None, spacing[::2])
        _show(column[4], image[::-1, front], labels[::-1, front], spacing[::2])
    patches = [Patch(color=label.color, label=label.name) for label in FLARE22]
    figure.legend(handles=patches, loc="lower center", ncols=7, frameon=False, labelcolor="white", fontsize=9)
    figure.subplots_adjust(left=0.003, right=0.997, top=0.94, bottom=0.05, wspace=0.02, hspace=0.03)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=90, facecolor="black")
    print(f"wrote {output}")


def _wrapped(findings: tuple[str, ...], per_line: int = 2) -> str:
    lines = [", ".join(findings[i : i + per_line]) for i in range(0, len(findings), per_line)]
    return "\n".join(lines[:2]) or "no findings"


def _read_real(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """The real CT and its labels (zeros if there are none) as (z, y, x), and the spacing (z, y, x) in mm."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    array = sitk.GetArrayFromImage(image)
    beside = path.with_name(path.name.replace(".nii.gz", "_labels.nii.gz"))
    labels = np.zeros(array.shape, np.uint8)
    if beside.exists():
        labels = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(beside)), "LPS")).astype(np.uint8)
    x, y, z = image.GetSpacing()
    # The real CT extends to the thighs; it is shown from the lowest organ upwards.
    lowest = max(0, int(np.argwhere(labels > 0)[:, 0].min(initial=labels.shape[0])) - 12) if labels.any() else 0
    return array[lowest:], labels[lowest:], (z, y, x)


def _telling_slices(labels: np.ndarray) -> tuple[int, int, int]:
    """An axial slice through liver and spleen, one through kidneys and pancreas, a coronal one through the kidneys."""
    if not labels.any():
        return int(labels.shape[0] * 0.7), labels.shape[0] // 2, labels.shape[1] // 2
    ids = {label.name: label.id for label in FLARE22}
    middle = _slice_with_most(labels, [ids[n] for n in ("Right kidney", "Left kidney", "Pancreas", "Duodenum")], 0)
    upper = _slice_with_most(labels, [ids[n] for n in ("Liver", "Spleen", "Stomach", "Left adrenal gland")], 0)
    if upper <= middle + 3:
        upper = min(middle + 8, labels.shape[0] - 1)
    front = _slice_with_most(labels, [ids[n] for n in ("Aorta", "Right kidney", "Left kidney", "Spleen")], 1)
    return upper, middle, front


def _slice_with_most(labels: np.ndarray, ids: list[int], axis: int) -> int:
    """The slice along an axis where these organs together reach the largest fractions of their maximum areas."""
    others = tuple(i for i in range(3) if i != axis)
    areas = np.stack([(labels == ident).sum(axis=others) for ident in ids]).astype(float)
    return int((np.sqrt(areas / np.maximum(areas.max(axis=1, keepdims=True), 1))).sum(axis=0).argmax())


def _show(axes: Axes, image: np.ndarray, labels: np.ndarray | None, spacing: tuple[float, ...]) -> None:
    """Show a slice (rows, columns) with its labels overlaid, at the same scale for all slices and the body centred."""
    low, high = WINDOW
    grey = np.clip((image.astype(float) - low) / (high - low), 0, 1)
    colored = np.repeat(grey[..., None], 3, axis=-1)
    if labels is not None:
        for label in FLARE22:
            inside = labels == label.id
            colored[inside] = (1 - _OPACITY) * colored[inside] + _OPACITY * np.array(to_rgb(label.color))
    height, width = np.array(image.shape) * spacing
    axes.imshow(colored, extent=(0, width, height, 0), interpolation="nearest")
    row, column = (np.percentile(part, [2, 98]).mean() for part in np.nonzero(image > -200))
    y, x = (row + 0.5) * spacing[0], (column + 0.5) * spacing[1]
    axes.set_xlim(x - SHOWN_MM[1] / 2, x + SHOWN_MM[1] / 2)
    axes.set_ylim(y + SHOWN_MM[0] / 2, y - SHOWN_MM[0] / 2)
    axes.set_facecolor("black")
    axes.axis("off")


def measure_generation(cases: int, workers: int) -> Path:
    """Write ``cases`` CTs of 64×128×128 voxels to a temporary folder and record the time it took."""
    labelled, validation, test = cases // 6, cases // 15, cases // 8
    unlabelled = cases - labelled - validation - test
    with tempfile.TemporaryDirectory() as folder:
        load = os.getloadavg()[0]
        cpu, start = _cpu_seconds(), time.perf_counter()
        write_phantoms(Path(folder), labelled, unlabelled, validation, test, workers=workers)
        seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.nii.gz"))
    record = {
        "what": "write_phantoms, 64×128×128 voxels a case, images and labels to disk",
        "cases": cases,
        "workers": workers,
        "seconds": round(seconds, 1),
        "seconds_per_case": round(seconds / cases, 3),
        "cpu_seconds": round(cpu, 1),
        "megabytes": round(size / 1e6, 1),
        "load_average_before": round(load, 2),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "SimpleITK": sitk.Version.VersionString(),
        },
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "phantom_generation.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"{cases} cases in {seconds:.1f} s with {workers} workers; wrote {path}")
    return path


def _cpu_seconds() -> float:
    """CPU time of this process and its finished children, which does not depend on other load on the machine."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def main() -> None:
    """Parse the arguments and run the requested command."""
    parser = argparse.ArgumentParser(description="Look at the synthetic abdomens, or time them.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    picture = verbs.add_parser("picture", help="write the gallery")
    picture.add_argument("--output", type=Path, default=RESULTS / "phantom_gallery.png")
    picture.add_argument("--real", type=Path, default=REAL_CT)
    timing = verbs.add_parser("time", help="time the generation of a dataset")
    timing.add_argument("--cases", type=int, default=60)
    timing.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.verb == "picture":
        draw_gallery(arguments.output, arguments.real)
    else:
        measure_generation(arguments.cases, arguments.workers)


if __name__ == "__main__":
    main()
