"""Run folders as written by training, on a dataset of tiny volumes."""

import functools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import yaml
from matplotlib.figure import Figure

from dlunet.evaluation import evaluate_folder
from dlunet.labels import FLARE22
from dlunet.reporting import figures
from dlunet.volumes import Geometry, write_labels

TABLE_3 = ("sup_nnunet", "ssl_nnunet", "sup_light", "ssl_light")
PARTS_OF = {
    f"{method}_{network}": (f"dlunet.methods.{target}", kind, "dlunet.losses.RobustSegmentationLoss")
    for method, target in (("sup", "Supervised"), ("ssl", "CrossPseudo"))
    for network, kind in (("nnunet", "PlainUNet"), ("light", "LightUNet"))
} | {
    f"loss_{name}": ("dlunet.methods.Supervised", "PlainUNet", f"dlunet.losses.{loss}")
    for name, loss in (("dice_ce", "DiceCrossEntropyLoss"), ("nrd_tce", "RobustSegmentationLoss"))
}
UNKNOWN = ("mine.Method", "Mine", "mine.Loss")
PARTS = ("provenance", "predictions", "scores")
CASES = ("case_1", "case_2", "case_3", "case_4")
SHAPE = (12, 40, 52)
GRID = Geometry(SHAPE[::-1], (1.5, 1.5, 4.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def ellipsoids(seed, jitter=0.0, leave_out=()):
    """A label map with 13 ellipsoids at fixed positions, shifted by up to ``jitter`` voxels."""
    rng, moves = np.random.default_rng(7), np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    array = np.zeros(SHAPE, np.uint8)
    for label in FLARE22:
        centre = rng.uniform((3, 9, 9), (9, 31, 43)) + moves.uniform(-1, 1, 3) * jitter
        radii = (3, 5, 6) if label.id in (1, 3, 11) else (2.5, 3, 3)
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radii, strict=True)) <= 1
        if label.id not in leave_out:
            array[inside] = label.id
    return array


def write_ct(labels, path, seed):
    _, y, x = np.indices(SHAPE)
    body = ((y - 20) / 18) ** 2 + ((x - 26) / 24) ** 2 <= 1
    hounsfield = (
        np.where(body, 20 + 6 * labels.astype(int), -1000) + np.random.default_rng(seed).normal(0, 12, SHAPE) * body
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(GRID.apply_to(sitk.GetImageFromArray(hounsfield.astype(np.int16))), str(path))


#: An empty picture.
BLANK = figures.png(Figure(figsize=(0.1, 0.1)))


@pytest.fixture
def blank_figures(monkeypatch):
    """Figures are made but not drawn, which takes most of the time of a report: for tests of the rest of it."""
    monkeypatch.setattr(figures, "png", lambda figure: BLANK)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A dataset in FLARE22's layout whose test cases have labels."""
    root = tmp_path_factory.mktemp("data")
    training = root / "Training" / "FLARE22_LabeledCase50"
    for seed, case in enumerate(("train_1", *CASES)):
        folder, labels = root / "Testing" if seed else training, ellipsoids(seed, 2, (9,) if seed == 2 else ())
        write_ct(labels, folder / "images" / f"{case}_0000.nii.gz", seed)
        write_labels(labels, folder / "labels" / f"{case}.nii.gz", GRID)
    return root


@pytest.fixture
def make_run(tmp_path, data):
    """Write a run folder below the test's own folder; arguments as for :func:`write_run`."""
    return functools.partial(write_run, tmp_path / "sweep", data)


@pytest.fixture(scope="session")
def table_3_runs(tmp_path_factory, data):
    """The runs of the paper's table 3, each better than the one before; tests must not modify them."""
    sweep = tmp_path_factory.mktemp("table_3")
    return [write_run(sweep, data, name, error=2 - index / 2) for index, name in enumerate(TABLE_3)]


def write_run(sweep, data, name, seed=1, error=1.0, parts=PARTS, data_name="phantom", parts_of=None):
    """Write a run folder; the larger ``error``, the worse the predictions."""
    run = sweep / name / f"seed_{seed}"
    run.mkdir(parents=True)
    config = {"name": name, "seed": seed, "scale": {"name": "cpu"}, "data": {"name": data_name, "root": str(data)}}
    config |= {"trainer": {"max_epochs": 4}, "sampling": {"steps_per_epoch": 60}}
    method, network, loss = parts_of or PARTS_OF.get(name, UNKNOWN)
    source = "read_flare22" if data_name == "flare22" else "open_phantoms"
    config["data"]["source"] = {"_target_": f"dlunet.datasets.{source}"}
    config |= {"method": {"_target_": method}, "network": {"kind": network}, "loss": {"_target_": loss}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    _write_metrics(run / "metrics.csv", seed, error)
    (run / "labels.json").write_text(json.dumps(FLARE22.to_dict()))
    if "provenance" in parts:
        provenance = {
            "git": {"commit": "0123abcd", "modified": False},
            "versions": {"torch": "2.4"},
            "machine": {"processor": "two cores", "gpus": []},
        }
        (run / "provenance.json").write_text(json.dumps(provenance))
    for part in {"predictions", "scores"} & set(parts):
        shutil.copytree(scored(data, error) / part, run / part)
    return run


@functools.cache
def scored(data, error):
    """A folder with predictions and their scores, which are those of all runs with the same error."""
    folder = data / f"error_{error}"
    for number, case in enumerate(CASES, start=1):
        moved = ellipsoids(number, 2 + error * number / 2, (9,) if number == 2 else ())
        write_labels(moved, folder / "predictions" / f"{case}.nii.gz", GRID)
    images = {case: str(data / "Testing" / "images" / f"{case}_0000.nii.gz") for case in CASES}
    (folder / "predictions" / "prediction.json").write_text(json.dumps({"images": images}))
    evaluate_folder(folder / "predictions", data / "Testing" / "labels", folder / "scores", workers=1)
    return folder


def _write_metrics(path, seed, error, steps=240):
    rng = np.random.default_rng(seed)
    step = np.arange(0, steps, 2)
    training = pd.DataFrame(
        {"step": step, "epoch": step // 60, "train/loss": np.exp(-step / 80) + rng.normal(0, 0.05, len(step))}
    )
    validation = pd.DataFrame({"step": np.arange(59, steps, 60), "epoch": range(4)})
    for label in FLARE22:
        validation[f"val/dsc/{label.abbreviation}"] = (0.9 - 0.1 * error) * (1 - np.exp(-validation["step"] / 90))
    validation["val/dsc"] = validation.filter(like="val/dsc/").mean(axis=1)
    pd.concat([training, validation]).to_csv(path, index=False)
