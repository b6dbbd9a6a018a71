"""Pipelines called from Python refuse invalid settings before any work, like the command line."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dlunet import pipelines
from dlunet.configs import compose
from dlunet.datasets import Case
from dlunet.errors import UserError
from dlunet.training import RunFolder

SETTINGS = ["scale=tiny", "data=flare22", "logger=csv"]
#: A change to valid settings, and the message it causes.
WRONG = [
    ("data.root=???", "^missing: data.root; "),
    ("seed=-1", "^seed: found -1; expected a whole number"),
    ("output=taken/run", "^output=taken/run: cannot create directory"),
    ("output=run", "^flare22: no such folder"),
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a file that blocks an output folder; nothing else may appear in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    yield
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def training(*settings):
    return compose("train", [*SETTINGS, "data.root=flare22", *settings])


@pytest.mark.parametrize(("setting", "message"), WRONG)
def test_training(setting, message):
    with pytest.raises(UserError, match=message):
        pipelines.train(training(setting))


@pytest.mark.parametrize(("setting", "message"), WRONG)
def test_self_training_checks_the_student_before_it_trains_the_teacher(tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        pipelines.self_train(training(), [training(), training(setting)], tmp_path)


def test_a_test_case_whose_name_ends_like_a_channel_is_scored(tmp_path, monkeypatch):
    """Only what is scored, and where, is of interest here: segmentation writes one label map per case."""
    cases = [Case(name, Path(f"{name}_0000.nii.gz"), Path(f"labels/{name}.nii.gz")) for name in ("a", "a_0000")]
    run, scored = RunFolder(Path("run")), []
    listed = [run.predictions / f"{case.name}.nii.gz" for case in cases]
    predictor, devices = SimpleNamespace(bundle=SimpleNamespace(labels=None)), []
    monkeypatch.setattr(pipelines, "load_engine", lambda _, device: (devices.append(device), None))
    monkeypatch.setattr(pipelines, "Predictor", lambda *_, **__: predictor)
    monkeypatch.setattr(pipelines, "predict_files", lambda *_, **__: None)
    monkeypatch.setattr(pipelines, "list_volumes", lambda _: listed)
    monkeypatch.setattr(pipelines, "evaluate_folder", lambda _, references, *__, **___: scored.append(references))
    pipelines._score(cases, "test", run, training("trainer.accelerator=cpu"))
    assert scored == [{case.name: case.label for case in cases}] and devices == ["cpu"]


def test_prediction():
    with pytest.raises(UserError, match=r"^missing: checkpoint; "):
        pipelines.predict(compose("predict", ["input=cts", "output=labels"]))
