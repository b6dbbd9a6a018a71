"""Measures patches per second of the labelled queue, beside TorchIO's ``LabelSampler`` on the same cases as NIfTI.

    python benchmarks/patch_queue.py

Both sides yield 56×160×160 patches of image and labels in one process without augmentation, one patch per volume, as
training mixes cases. Before timing, the script locates the patches of both sides in their source volumes. Volumes of 64
and of 512 slices are measured, and the full augmentation with the time of each transform.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import torch
import torchio as tio

from dlunet.configs import CONFIGS
from dlunet.labels import FLARE22
from dlunet.methods import Supervised
from dlunet.preparation import Intensity, Plan, PreparedCase, PreparedDataset
from dlunet.preparation.store import save_prepared
from dlunet.provenance import provenance
from dlunet.sampling import Augmentation, PatchDataModule

RESULTS = Path(__file__).parent / "results" / "patch_queue.json"
PATCH, EDGE, SLICES = (56, 160, 160), 256, (64, 512)
PLAN = Plan((2.5, 1.5, 1.5), PATCH, Intensity(-300, 300, 0, 100))
CASES, REPEATS = 2, 5
OURS, THEIRS, AUGMENTED = 200, 2, 10


def main() -> None:
    """Write the volumes, check and time both sides, and write the results."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {"patch": PATCH, "volume": f"slices × {EDGE} × {EDGE}", "slices": {}}
    with tempfile.TemporaryDirectory() as folder:
        folders = {slices: Path(folder) / str(slices) for slices in SLICES}
        for slices, place in folders.items():
            for number in range(CASES):
                write_case(place, number, slices)
            check(place)
        results["slices"] = measure(folders)
        long, short = results["slices"][SLICES[1]], results["slices"][SLICES[0]]
        results["long_to_short"] = round(long["ours_per_s"] / short["ours_per_s"], 3)
        results["augmented"] = measure_augmentation(folders[SLICES[0]])
    results["provenance"] = provenance()
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({key: results[key] for key in ("slices", "long_to_short", "augmented")}, indent=2))


def measure(folders: dict[int, Path]) -> dict[int, dict[str, float]]:
    """The median rate of both sides for both lengths, measured in turn several times."""
    ours: dict[int, list[float]] = {slices: [] for slices in folders}
    theirs: dict[int, list[float]] = {slices: [] for slices in folders}
    for _ in range(REPEATS):
        for slices, folder in folders.items():
            ours[slices].append(patches_a_second(partial(our_patches, folder), OURS))
        for slices, folder in folders.items():
            theirs[slices].append(patches_a_second(partial(torchio_patches, folder), THEIRS))
    return {
        slices: {
            "ours_per_s": round(median(ours[slices]), 2),
            "torchio_per_s": round(median(theirs[slices]), 3),
            "ratio": round(median(ours[slices]) / median(theirs[slices]), 1),
        }
        for slices in folders
    }


def measure_augmentation(folder: Path) -> dict[str, Any]:
    """Patches per second with nnU-Net's augmentation, and for each transform the milliseconds per application."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose("train", ["augmentation=nnunet"]).augmentation
    augmentation = hydra.utils.instantiate(config, _convert_="all")
    rates = [patches_a_second(lambda n: our_patches(folder, n, augmentation), AUGMENTED) for _ in range(REPEATS)]
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.randn(1, *PATCH)))
    parts = {}
    for transform in augmentation.after.transforms:
        name = f"{type(transform).__name__} (p={transform.probability:g})"
        begin = time.perf_counter()
        for _ in range(3):
            transform.apply_transform(subject)
        parts[name] = round((time.perf_counter() - begin) / 3 * 1000, 1)
    return {"ours_per_s": round(median(rates), 2), "ms_where_it_acts": parts}


def write_case(folder: Path, number: int, slices: int) -> None:
    """Write the same case as prepared store and as NIfTI: noise with three organs."""
    rng = np.random.default_rng(number)
    image = rng.normal(0, 1, (slices, EDGE, EDGE)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    for organ in (1, 2, 3):
        label[slices // 4 * organ - 6 : slices // 4 * organ + 6, 60 * organ : 60 * organ + 30, 40:90] = organ
    save_prepared(folder / f"case_{number}", image, label, {})
    case = PreparedCase.open(folder / f"case_{number}")
    affine = np.diag([*PLAN.spacing, 1])
    stored = torch.from_numpy(case.image.astype(np.float32)) * case.quantisation_step
    tio.ScalarImage(tensor=stored, affine=affine).save(folder / f"image_{number}.nii.gz")
    tio.LabelMap(tensor=torch.from_numpy(np.array(label))[None], affine=affine).save(folder / f"label_{number}.nii.gz")


def our_patches(folder: Path, count: int, augmentation: Augmentation | None = None) -> Iterator[Any]:
    """Patches, image and label, of the data module used in training."""
    cases = tuple(PreparedCase.open(folder / f"case_{number}") for number in range(CASES))
    prepared = PreparedDataset(FLARE22, PLAN, cases, (), ())
    module = PatchDataModule(prepared, Supervised(), augmentation or Augmentation(), 1, count, foreground_fraction=1.0)
    module.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=0)  # type: ignore[assignment]
    for batch, *_ in module.train_dataloader():
        yield batch["labelled"]["weak"], batch["labelled"]["label"]


def torchio_patches(folder: Path, count: int) -> Iterator[Any]:
    """Patches, image and label, of TorchIO's queue and label sampler, one per volume."""
    subjects = [
        tio.Subject(
            image=tio.ScalarImage(folder / f"image_{number}.nii.gz"),
            label=tio.LabelMap(folder / f"label_{number}.nii.gz"),
        )
        for number in range(CASES)
    ]
    dataset = tio.SubjectsDataset([subjects[k % CASES] for k in range(count)])
    sampler = tio.LabelSampler(PATCH, "label", {1: 1, 2: 1, 3: 1})
    queue = tio.Queue(dataset, max_length=1, samples_per_volume=1, sampler=sampler, num_workers=0)
    for subjects in tio.SubjectsLoader(queue, batch_size=1):
        yield subjects["image"][tio.DATA], subjects["label"][tio.DATA][:, 0]


def patches_a_second(make: Callable[[int], Iterator[Any]], count: int) -> float:
    """Patches drawn per second."""
    begin = time.perf_counter()
    drawn = sum(1 for _ in make(count))
    assert drawn == count
    return count / (time.perf_counter() - begin)


def check(folder: Path) -> None:
    """Check that the patches of both sides are crops of one of the volumes, with an organ at the centre."""
    volumes = [tio.ScalarImage(folder / f"image_{number}.nii.gz").data for number in range(CASES)]
    for patches in (our_patches(folder, 2), torchio_patches(folder, 2)):
        for images, labels in patches:
            image, label = images[0], labels[0]
            assert tuple(image.shape) == (1, *PATCH) and label[28, 80, 80] > 0
            anchor = image[0, 28, 80, 80]
            places = [(n, *map(int, z)) for n, v in enumerate(volumes) for z in torch.nonzero(v[0] == anchor)]
            assert any(_is_there(volumes[n][0], image[0], (z, y, x)) for n, z, y, x in places)


def _is_there(volume: torch.Tensor, patch: torch.Tensor, centre: tuple[int, int, int]) -> bool:
    """Whether the 9×9×9 voxels around a voxel of the volume equal those at the centre of the patch."""
    z, y, x = centre
    near = volume[max(z - 4, 0) : z + 5, max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5]
    return near.shape == (9, 9, 9) and torch.equal(near, patch[24:33, 76:85, 76:85])


if __name__ == "__main__":
    main()
