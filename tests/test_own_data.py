"""A user's own dataset, from files to scores, without a config for it."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml

ORGANS = ("liver", "left_kidney", "cyst")
ORIENTATIONS = ("LPS", "RAS", "PIR", "SLA")
DATA = ("data=nnunet", "data.root=Dataset042_Mine", "data.workers=1", "logger=csv")


@pytest.fixture(scope="module")
def place(write_volume, tiny_abdomen, tmp_path_factory):
    """nnU-Net's raw layout: 4 labelled, 8 unlabelled and 2 test CTs of mixed orientations and spacings."""
    root = tmp_path_factory.mktemp("own") / "Dataset042_Mine"
    parts = [("Tr", f"mine_{k}") for k in range(4)] + [("Un", f"more_{k}") for k in range(8)] + [("Ts", "held_out")]
    for seed, (part, name) in enumerate(parts):
        grid = {"orientation": ORIENTATIONS[seed % 4], "spacing": (8.0, 7.0 + seed / 8, 8.0)}
        abdomen = tiny_abdomen(seed)
        write_volume(root / f"images{part}" / f"{name}_0000.nii.gz", abdomen.hu, **grid)
        if part != "Un":
            labels = abdomen.labels * (abdomen.labels <= len(ORGANS))
            write_volume(root / f"labels{part}" / f"{name}.nii.gz", labels, **grid)
    names = {"background": 0} | {name: k for k, name in enumerate(ORGANS, start=1)}
    (root / "dataset.json").write_text(json.dumps({"labels": names, "channel_names": {"0": "CT"}}))
    return root.parent


@pytest.fixture
def run(dlunet, place):
    """``run(verb, setting, …)`` runs a command in ``place``."""
    return partial(dlunet, cwd=place)


def test_a_plan_of_its_own(place, run):
    """Median spacing, the complete CT as patch, and a network to match; the user's own settings are kept."""
    data = (*DATA, "scale=auto", "data.prepared=own")
    short = (
        "trainer.max_epochs=1",
        "sampling.steps_per_epoch=1",
        "sampling.num_workers=0",
        "trainer.precision=32-true",
    )
    run("prepare", *data)
    (file,) = (place / "own").glob("*/plan.yaml")
    chosen = yaml.safe_load(file.read_text())
    spacings = np.array([(8.0, 7.0 + seed / 8, 8.0) for seed in range(4)])
    names = {"val": 1, "train": 3}  # one of the four cases is for validation
    splits = json.loads((place / "own" / "splits.json").read_text())[0]
    assert {part: len(cases) for part, cases in splits.items()} == names
    assert chosen["plan"]["spacing"] == pytest.approx(
        np.median(spacings, axis=0).tolist()
    )  # of all folds, as in nnU-Net
    assert chosen["plan"]["patch_size"] == [24, 40, 40] and chosen["network"]["features"] == [32, 64, 128, 256]
    assert chosen["plan"]["intensity"]["lower"] < chosen["plan"]["intensity"]["upper"]
    run("train", *data, *short, "output=own-run", "network.features=[4,8,16,32]", "experiment=sup_light")
    kept = yaml.safe_load((place / "own-run" / "config.yaml").read_text())
    assert kept["network"]["features"] == [4, 8, 16, 32] and kept["plan"]["patch_size"] == [24, 40, 40]


def test_a_plan_that_cannot_be_written_beside_the_cases(place, run):
    """As on a read-only disk: the prepared cases are of use for another patch, too."""
    data = (*DATA, "scale=tiny", "data.prepared=fixed", "data.splits=fixed-splits.json")
    run("prepare", *data)
    (file,) = (place / "fixed").glob("*/plan.yaml")
    file.unlink()
    (file / "in the way").mkdir(parents=True)
    cases = {path: path.stat().st_mtime_ns for path in (place / "fixed").glob("*/*labelled/*/*")}
    assert "plan.yaml: could not be written" in run("prepare", *data, "plan.patch_size=[8,16,16]").all
    assert cases == {path: path.stat().st_mtime_ns for path in (place / "fixed").glob("*/*labelled/*/*")}


def test_train_predict_evaluate_report(place, run):
    data = (*DATA, "scale=tiny")
    run("train", *data)
    folder = place / "runs" / "ssl_light-Dataset042_Mine-fold0-tiny-seed0"
    assert len(json.loads((place / "data" / "Dataset042_Mine-prepared" / "splits.json").read_text())) == 4

    checkpoint = f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}"
    run("predict", checkpoint, "input=Dataset042_Mine/imagesTs", f"output={folder}/predictions")
    references = "references=Dataset042_Mine/labelsTs"
    run("evaluate", f"predictions={folder}/predictions", references, f"output={folder}/scores")
    assert list(pd.read_csv(folder / "scores" / "summary.csv")["organ"]) == [*ORGANS, "Mean"]
    scores = pd.read_csv(folder / "scores" / "scores.csv")
    assert list(scores["organ"]) == list(ORGANS)
    assert list(scores["nsd"].isna()) == [False, False, True]  # no tolerance is defined for cysts

    run("report", f"runs={folder}", "output=report")
    page = (place / "report" / "index.html").read_text()
    assert "left_kidney" in page and "SYNTHETIC" not in page and "Table 3" not in page
    assert (place / "report" / "panels.png").exists()
