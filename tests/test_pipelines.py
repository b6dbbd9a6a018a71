"""Pipelines called from Python refuse invalid settings before any work, like the command line."""

import pytest

from dlunet import pipelines
from dlunet.configs import compose
from dlunet.errors import UserError

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


def test_prediction():
    with pytest.raises(UserError, match=r"^missing: checkpoint; "):
        pipelines.predict(compose("predict", ["input=cts", "output=labels"]))
