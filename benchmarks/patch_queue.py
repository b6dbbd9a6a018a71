"""How many patches a second the labelled queue gives, beside TorchIO's LabelSampler, and what bounds it.

    python benchmarks/patch_queue.py [--repeats 5]

Synthetic abdomens of 64 and of 512 slices of 256 × 256 are stored twice, as prepared cases and as .nii.gz with the same
values. Both sides give class-centred patches without augmentation, through a queue and a loader, in this process and on
one thread. That the patches are centred on a label and equal the volume where they were cut is checked first. TorchIO
is measured with one patch a volume, which is what a batch of different cases needs, and with eight, its usual setting.

Then the queue runs as in training, with and without the augmentation of conf/augmentation/nnunet.yaml, and each step of
a patch is timed alone. Files stay in the page cache, and there are as many voxels of either height, so that the
processor's cache favours neither. The figures go to benchmarks/results/patch_queue.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
import torchio as tio
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy import ndimage

from dlunet.datasets.phantom import make_phantom
from dlunet.labels import FLARE22
from dlunet.methods import Supervised
from dlunet.preparation import Intensity, Plan, PreparedCase, PreparedDataset
from dlunet.preparation.store import save_prepared
from dlunet.provenance import provenance
from dlunet.sampling import Augmentation, ClassBalancedSampler, PatchDataModule, PatchDataset
from dlunet.sampling.augmentation import crop_size

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "patch_queue.json"
AUGMENTATION = ROOT / "conf" / "augmentation" / "nnunet.yaml"
INTENSITY = Intensity(-900.0, 280.0, 70.0, 120.0)
PATCH = (56, 160, 160)
PLAN = Plan((2.5, 1.5, 1.5), PATCH, INTENSITY)

#: Slices of a volume, and how many such volumes there are.
VOLUMES = {64: 16, 512: 2}

#: TorchIO's settings: the labels on which patches are centred, and patches a volume.
BALANCED = dict.fromkeys(range(1, 14), 1.0)
PEERS: dict[str, tuple[dict[int, float] | None, int]] = {
    "torchio, class-balanced, 1 patch a volume": (BALANCED, 1),
    "torchio, class-balanced, 8 patches a volume": (BALANCED, 8),
    "torchio, any label, 8 patches a volume": (None, 8),
}

#: Volumes that TorchIO reads in a timed run, and patches of ours.
READ = {64: 8, 512: 2}
PATCHES = 64
STEPS_TIMED = 40


def main() -> None:
    """Check, time, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    result: dict[str, Any] = {"repeats": repeats, "patch_size": PATCH, **provenance()}
    with tempfile.TemporaryDirectory() as folder:
        cases = {slices: write_cases(Path(folder), slices) for slices in VOLUMES}
        for of_one_height in cases.values():
            check_ours(of_one_height)
            for probabilities, samples in PEERS.values():
                check_torchio(of_one_height, probabilities, samples)
        result["beside_torchio"] = {
            f"{slices} slices": beside_torchio(of_one_height, slices, repeats)
            for slices, of_one_height in cases.items()
        }
        result["in_training"] = in_training(cases, repeats)
        result["milliseconds_a_patch"] = breakdown(cases[64], repeats)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("beside_torchio", "in_training", "milliseconds_a_patch")}, indent=2))


def make_volume(seed: int, shape: tuple[int, int, int], noise: float = 15.0) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic abdomen, stretched to a shape, with fresh noise: normalised image, and labels."""
    phantom = make_phantom(1 + seed % 4, "varied")
    factors = [m / n for n, m in zip(phantom.image.shape, shape, strict=True)]
    grid: dict[str, Any] = {"mode": "nearest", "grid_mode": True}
    image = ndimage.zoom(phantom.image.astype(np.float32), factors, order=1, **grid)
    image += np.random.default_rng(seed).normal(0, noise, shape)
    image = (image.round().clip(INTENSITY.lower, INTENSITY.upper) - INTENSITY.mean) / INTENSITY.std
    return image.astype(np.float32), ndimage.zoom(phantom.labels, factors, order=0, **grid).astype(np.uint8)


def write_cases(folder: Path, slices: int) -> tuple[PreparedCase, ...]:
    """Prepared cases, and in each one's folder the same arrays as .nii.gz."""
    cases = []
    for k in range(VOLUMES[slices]):
        path = folder / f"{slices}-{k}"
        save_prepared(path, *make_volume(k, (slices, 256, 256)), {})
        case = PreparedCase.open(path)
        assert case.label is not None
        for name, array in (("image", case.image[0]), ("label", case.label)):
            stored = sitk.GetImageFromArray(array)
            stored.SetSpacing(PLAN.spacing[::-1])
            sitk.WriteImage(stored, str(path / f"{name}.nii.gz"))
        cases.append(case)
    return tuple(cases)


def our_module(cases: tuple[PreparedCase, ...], steps: int, augmentation: Augmentation, **kwargs: Any) -> Any:
    """The data module of a supervised training, in its first epoch."""
    prepared = PreparedDataset(FLARE22, PLAN, cases, (), ())
    module = PatchDataModule(prepared, Supervised(), augmentation, steps_per_epoch=steps, **kwargs)
    module.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=0)  # type: ignore[assignment]
    return module


def torchio_loader(
    cases: Iterable[PreparedCase], probabilities: dict[int, float] | None, samples: int
) -> tio.SubjectsLoader:
    """TorchIO's own way: a volume is read, and patches are cut from it. Its files are in x, y, z."""
    subjects = [
        tio.Subject(
            image=tio.ScalarImage(case.folder / "image.nii.gz"),
            label=tio.LabelMap(case.folder / "label.nii.gz"),
            case=case.name,
        )
        for case in cases
    ]
    sampler = tio.LabelSampler(PATCH[::-1], "label", probabilities)
    queue = tio.Queue(tio.SubjectsDataset(subjects), max_length=samples, samples_per_volume=samples, sampler=sampler)
    return tio.SubjectsLoader(queue, batch_size=1, num_workers=0)


class _Noting(ClassBalancedSampler):
    """Remembers what it drew."""

    drawn: tuple[PreparedCase, tuple[int, int, int]]

    def draw_centre(self, case: PreparedCase, generator: np.random.Generator) -> tuple[int, int, int]:
        self.drawn = case, super().draw_centre(case, generator)
        return self.drawn[1]


def check_ours(cases: tuple[PreparedCase, ...]) -> None:
    """Patches equal the volume around the voxel that was drawn, with 0 outside it, and that voxel is labelled."""
    module = our_module(cases, 20, Augmentation())
    module.sampler = _Noting(PATCH, 1.0)
    for batch, *_ in module.train_dataloader():
        case, centre = module.sampler.drawn
        padding = [(n // 2, n // 2) for n in PATCH]
        where = tuple(slice(c, c + n) for c, n in zip(centre, PATCH, strict=True))
        patches = module.on_before_batch_transfer(batch, 0)
        assert case.label is not None and batch["labelled"]["case"] == [case.name]
        _must_equal(patches["image"][0, 0], np.pad(case.image[0], padding)[where] * case.unit)
        _must_equal(patches["label"][0], np.pad(case.label, padding)[where])
        _must_be_labelled(patches["label"][0])


def check_torchio(cases: tuple[PreparedCase, ...], probabilities: dict[int, float] | None, samples: int) -> None:
    """The same of TorchIO's patches, at the place they state."""
    by_name = {case.name: case for case in cases}
    for batch in torchio_loader(cases[:2], probabilities, samples):
        case = by_name[batch["case"][0]]
        start, stop = (part.tolist()[::-1] for part in batch[tio.LOCATION][0].split(3))
        where = tuple(slice(i, j) for i, j in zip(start, stop, strict=True))
        image, label = (batch[name][tio.DATA][0, 0].permute(2, 1, 0) for name in ("image", "label"))
        assert case.label is not None
        _must_equal(image, case.image[0][where])
        _must_equal(label, case.label[where])
        _must_be_labelled(label)


def _must_equal(patch: torch.Tensor, expected: np.ndarray) -> None:
    if patch.shape != PATCH or not np.array_equal(patch.numpy(), expected):
        raise SystemExit("a patch differs from the volume it was cut from; nothing is timed")


def _must_be_labelled(label: torch.Tensor) -> None:
    z, y, x = (n // 2 for n in PATCH)
    if label[z, y, x] == 0:
        raise SystemExit("a patch is not centred on a label; nothing is timed")


def beside_torchio(cases: tuple[PreparedCase, ...], slices: int, repeats: int) -> dict[str, Any]:
    """Patches a second of either side, in turn, all of them centred on a class."""
    rates: dict[str, list[float]] = {name: [] for name in ("dlunet", *PEERS)}
    for _ in range(repeats):
        module = our_module(cases, PATCHES, Augmentation(), foreground_fraction=1.0)
        rates["dlunet"].append(rate(module.train_dataloader))
        for name, (probabilities, samples) in PEERS.items():
            loader = torchio_loader(cases[: READ[slices]], probabilities, samples)
            rates[name].append(rate(lambda loader=loader: loader))  # type: ignore[misc]
    measured = summary(rates)
    medians = measured["medians"]
    return {**measured, "ratios": {name: round(medians["dlunet"] / medians[name], 1) for name in PEERS}}


def in_training(cases: dict[int, tuple[PreparedCase, ...]], repeats: int) -> dict[str, Any]:
    """Patches a second with the settings of a training, for either height, with and without augmentation."""
    rates: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, augmentation in (("none", Augmentation()), ("nnunet", nnunet_augmentation())):
            for slices, of_one_height in cases.items():
                module = our_module(of_one_height, PATCHES, augmentation)
                rates.setdefault(f"{slices} slices, augmentation {name}", []).append(rate(module.train_dataloader))
    measured = summary(rates)
    medians = measured["medians"]
    ratios = {
        name: round(medians[f"512 slices, augmentation {name}"] / medians[f"64 slices, augmentation {name}"], 3)
        for name in ("none", "nnunet")
    }
    return {**measured, "ratio_512_to_64": ratios}


def rate(make_loader: Callable[[], Iterable[Any]]) -> float:
    """Patches a second of an epoch."""
    start = time.perf_counter()
    count = sum(1 for _ in make_loader())
    return round(count / (time.perf_counter() - start), 3)


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """All runs and their medians."""
    return {"patches_a_second": rates, "medians": {name: statistics.median(runs) for name, runs in rates.items()}}


def breakdown(cases: tuple[PreparedCase, ...], repeats: int) -> dict[str, Any]:
    """What each step of a patch takes, alone and by how often it is done; and the whole, to compare with the sum."""
    augmentation = nnunet_augmentation()
    sampler = ClassBalancedSampler(PATCH)

    def dataset(with_augmentation: Augmentation) -> PatchDataset:
        return PatchDataset(cases, [k % len(cases) for k in range(STEPS_TIMED)], sampler, with_augmentation,
                            PLAN.spacing, True, [0])  # fmt: skip

    plain = dataset(Augmentation())
    turned = 1 - (1 - augmentation.affine_probability) ** 2
    items = [plain[k] for k in range(STEPS_TIMED)]
    torch.manual_seed(0)
    affines = []
    while len(affines) < STEPS_TIMED:
        affine = augmentation.draw_affine()
        affines += [affine] if affine is not None else []
    generator = np.random.default_rng(0)
    crops = []
    for k, affine in enumerate(affines):
        case = cases[k % len(cases)]
        centre = sampler.draw_centre(case, generator)
        crops.append((case, centre, crop_size(affine, PATCH, PLAN.spacing)))

    def turn(k: int) -> None:
        next(iter(sampler(affines[k](plain._read(*crops[k])))))

    steps: dict[str, tuple[float, Callable[[int], Any]]] = {
        "draw and read": (1.0, lambda k: plain[k]),
        "rotation and scaling, with its larger crop": (turned, turn),
    }
    for k, transform in enumerate(augmentation.after.transforms, start=1):
        chance, transform.probability = transform.probability, 1.0
        steps[f"{k} {transform.name}"] = (chance, lambda k, transform=transform: transform(items[k]))  # type: ignore[misc]
    whole = dataset(nnunet_augmentation())
    steps["whole patch, in the dataset"] = (1.0, lambda k: whole[k])

    runs: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, (_, step) in steps.items():
            start = time.perf_counter()
            for k in range(STEPS_TIMED):
                step(k)
            runs[name].append((time.perf_counter() - start) / STEPS_TIMED * 1000)
    measured = {
        name: {"alone": round(alone, 2), "chance": round(chance, 3), "weighted": round(alone * chance, 2)}
        for name, (chance, _) in steps.items()
        for alone in [statistics.median(runs[name])]
    }
    total = measured.pop("whole patch, in the dataset")["alone"]
    # A patch that is turned is read with its margin instead of without: that reading is counted in the rotation.
    measured["draw and read"]["weighted"] = round(measured["draw and read"]["alone"] * (1 - turned), 2)
    measured["draw and read"]["chance"] = round(1 - turned, 3)
    return {
        "steps": dict(sorted(measured.items(), key=lambda item: -item[1]["weighted"])),
        "sum_of_weighted": round(sum(step["weighted"] for step in measured.values()), 2),
        "whole_patch": total,
    }


def nnunet_augmentation() -> Augmentation:
    """The augmentation that trainings use."""
    return instantiate(OmegaConf.load(AUGMENTATION), _convert_="all")


if __name__ == "__main__":
    main()
