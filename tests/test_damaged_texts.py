"""Files other than volumes with cut, doubled, flipped or zeroed bytes are read, or refused with a reason."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from dlunet.datasets import Case, labels_of, read_dataset_json, split_cases
from dlunet.errors import UserError
from dlunet.inference import OutputFolder, export_bundle, find_images, load_engine
from dlunet.inference.case_tables import read_case_table, write_case_table
from dlunet.labels import FLARE22
from dlunet.networks import Bundle, LightUNet, describe, load_bundle
from dlunet.preparation import Intensity, Plan, PreparedCase, take_fingerprint
from dlunet.preparation.store import is_up_to_date, save_prepared
from dlunet.training import RunFolder
from dlunet.training.metrics_file import metrics_logger

NETWORK = {"kind": "LightUNet", "num_classes": 14, "features": [4, 8], "strides": [[1, 2, 2]],
           "kernel_sizes": [[1, 3, 3], [3, 3, 3]]}  # fmt: skip
PLAN = Plan((8.0, 8.0, 8.0), (8, 16, 16), Intensity(-1000, 400, 0, 100))


def bundle():
    arguments = {key: value for key, value in NETWORK.items() if key != "kind"}
    return Bundle(LightUNet(**arguments).eval(), PLAN, FLARE22, "digest", describe(NETWORK, PLAN, FLARE22))


def safetensors(folder):
    export_bundle(bundle(), "safetensors", folder / "export")
    return next((folder / "export").glob("*.safetensors"))


def write_run(folder):
    run = RunFolder(folder / "run")
    run.begin({"seed": 1, "trainer": {"max_epochs": 3}})
    run.keep_cases({"labelled": ["a"]})
    return run.path


def written(name, text):
    def write(folder):
        (folder / name).write_text(text)
        return folder / name

    return write


def prepared(folder):
    image = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    save_prepared(folder / "case", image, np.ones(image.shape, np.uint8), {"files": []})
    return folder / "case" / "case.json"


def one_case(folder):
    return Case("a", folder / "ct.nii.gz", folder / "label.nii.gz")


def fingerprint(folder):
    case, voxels = one_case(folder), np.arange(60).reshape(3, 4, 5)
    for path, array in ((case.image, voxels.astype(np.int16)), (case.label, (voxels > 9).astype(np.uint8))):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    take_fingerprint([case], 14, folder / "fingerprint.json", workers=1)
    return folder / "fingerprint.json"


def table(folder):
    write_case_table(folder / "volumes.csv", {name: {"case": name, "Liver": "1.5"} for name in ("a", "ä,", 'b"')})
    return folder / "volumes.csv"


DATASET = {"name": "x", "labels": {"background": 0, "liver": 1, "spleen": 2}, "channel_names": {"0": "CT"}}
CASES = [Case(name, None) for name in "abcde"]
SPLITS = [{"train": ["a", "b", "c", "d"], "val": ["e"]}]
RECORD = {"labels": FLARE22.to_dict(), "images": {"a": "/cts/a.nii.gz"}, "warnings": {}}

#: By kind of file: the function that writes it and the one that reads it.
READERS = {
    "dataset.json": (
        written("dataset.json", json.dumps(DATASET)),
        lambda path: labels_of(path, read_dataset_json(path)),
    ),
    "splits.json": (written("splits.json", json.dumps(SPLITS)), lambda path: split_cases(CASES, path)),
    "list": (written("list.txt", "a.nii.gz\nGröße/b.nii.gz\n"), find_images),
    "record": (written("prediction.json", json.dumps(RECORD)), lambda path: OutputFolder(path.parent).labels()),
    "table": (table, read_case_table),
    "prepared case": (prepared, lambda path: PreparedCase.open(path.parent).check()),
    "prepared case, checked": (prepared, lambda path: is_up_to_date(path.parent, {}, [], 14)),
    "fingerprint": (fingerprint, lambda path: take_fingerprint([one_case(path.parent)], 14, path, workers=1)),
    "weights": (safetensors, load_bundle),
    "export": (lambda folder: safetensors(folder).parent / "dlunet.json", lambda path: load_engine(path.parent)),
    "settings": (
        lambda folder: write_run(folder) / "config.yaml",
        lambda path: RunFolder(path.parent).check_same_settings({"seed": 1, "trainer": {"max_epochs": 3}}),
    ),
    "cases of a run": (
        lambda folder: write_run(folder) / "cases.json",
        lambda path: RunFolder(path.parent).keep_cases({"labelled": ["a"]}),
    ),
    "metrics": (written("metrics.csv", "epoch,step,train/loss\n0,1,0.5\n0,2,0.25\n1,3,0.125\n"),
                lambda path: metrics_logger(path.parent, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file(tmp_path, name, damage, rounds):
    write, read = READERS[name]
    path = write(tmp_path)
    content = path.read_bytes()
    rng = np.random.default_rng(list(f"{name} {damage.__name__}".encode()))
    for number in range(rounds):
        path.write_bytes(damage(content, rng))
        try:
            read(path)
        except UserError as error:
            assert len(str(error)) < 1500, (number, error)
