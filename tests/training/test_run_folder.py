"""The folder of a run: locking, and the checks before a run resumes."""

import errno
import json
import logging

import pytest
import torch

from dlunet.errors import UserError, WriteError
from dlunet.training import RunFolder, run_folder
from dlunet.training.run_folder import Done

SETTINGS = {"seed": 1, "resume": None, "trainer": {"max_epochs": 5, "precision": 32}}
CASES = {"labelled": ["a", "b"], "unlabelled": [], "validation": ["c"]}


def checkpoint(epochs, steps):
    """The part of a checkpoint that says what is done."""
    return {"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}}, "global_step": steps}


@pytest.fixture
def run(tmp_path):
    """A run with three finished epochs."""
    folder = RunFolder(tmp_path / "run")
    assert folder.begin(SETTINGS) == Done(None, 0, 0)
    folder.keep_cases(CASES)
    folder.checkpoints.mkdir()
    torch.save(checkpoint(3, 30), folder.last)
    return folder


def test_a_run_goes_on_with_the_same_settings(run):
    assert run.begin({**SETTINGS, "resume": "auto", "trainer": {"max_epochs": 9, "precision": 32}}) == Done(
        run.last, 3, 30
    )
    # The default scale on a GPU is only used when a run begins.
    assert run.begin({**SETTINGS, "data": {"gpu_scale": "cpu"}}) == Done(run.last, 3, 30)
    run.keep_cases(CASES)
    with pytest.raises(UserError, match="already contains a run; add resume=auto"):
        run.check_free(resume=False)
    run.check_free(resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, r"other settings \(seed: found 1, now 2\)"),
        ({"trainer": {"max_epochs": 5, "precision": 16}}, r"trainer\.precision: found 32, now 16"),
        ({"trainer": {"max_epochs": 2, "precision": 32}}, r"trainer\.max_epochs: found 2; expected at least 3"),
    ],
)
def test_other_settings_are_refused(run, change, message):
    before = (run.path / "config.yaml").read_text()
    with pytest.raises(UserError, match=message):
        run.begin({**SETTINGS, **change})
    assert (run.path / "config.yaml").read_text() == before


def test_pseudo_labels_may_be_moved_but_not_changed(run, tmp_path):
    files = {}
    for name in "abc":
        files[name] = tmp_path / f"{name}.nii.gz"
        files[name].write_text(name)
    run.keep_pseudo_labels(files)  # nothing is known of those of a run of an earlier version
    moved = {name: path.rename(tmp_path / f"moved_{name}.nii.gz") for name, path in files.items()}
    run.keep_pseudo_labels(moved)
    settings = {**SETTINGS, "data": {"pseudo_labels": "here"}}
    run.begin(SETTINGS | {"data": {"pseudo_labels": None}})
    assert run.begin(settings) == Done(run.last, 3, 30)
    moved["b"].write_text("other")
    with pytest.raises(UserError, match=r"run: contains a run on other pseudo-labels \(1 changed: b\); restore them"):
        run.keep_pseudo_labels(moved)
    with pytest.raises(UserError, match=r"\(3 changed: a, b, c\)"):
        run.keep_pseudo_labels({})
    run.last.unlink()  # a run that has not finished an epoch starts anew
    run.keep_pseudo_labels({})
    torch.save(checkpoint(3, 30), run.last)
    with pytest.raises(UserError, match=r"\(3 changed: a, b, c\)"):
        run.keep_pseudo_labels(moved)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"truncated"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(run, content, caplog):
    run.last.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt: is not a checkpoint, or is damaged"):
        run.begin(SETTINGS)
    torch.save(checkpoint(2, 25), run.previous)
    assert run.done() == Done(run.previous, 2, 25)
    assert run.begin(SETTINGS) == run.done() == Done(run.last, 2, 25)
    assert "continuing from the one before" in caplog.text
    assert run.last.with_name("damaged.ckpt").read_bytes() == content  # and is never the one before


@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_tensors_that_are_damaged_are_noticed(run, part, caplog):
    """PyTorch reads them as if they were whole."""
    torch.save({**checkpoint(3, 30), "weights": torch.ones(1000)}, run.last)
    torch.save(checkpoint(2, 25), run.previous)
    content = bytearray(run.last.read_bytes())
    where = content.index(torch.ones(1000).numpy().tobytes()) + int(4000 * part)
    content[where] ^= 1
    run.last.write_bytes(content)
    assert torch.load(run.last, weights_only=True)["global_step"] == 30
    assert run.begin(SETTINGS) == Done(run.last, 2, 25)
    assert "the checksum of" in caplog.text and "continuing from the one before" in caplog.text


def test_both_checkpoints_are_damaged(run):
    run.previous.write_bytes(b"x")
    run.last.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"last.ckpt: is not .*; .*previous.ckpt: is not .*; restore one of them, or use"
    ):
        run.begin(SETTINGS)
    run.last.unlink()
    with pytest.raises(UserError, match=r"last.ckpt: is missing; .*previous.ckpt: is not"):
        run.begin(SETTINGS)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_whose_last_checkpoints_are_lost_is_not_replaced(run, resume):
    torch.save({}, run.best)
    run.last.unlink()
    with pytest.raises(UserError, match=r"best.ckpt: found without last.ckpt and previous.ckpt"):
        run.check_free(resume)


def test_a_repair_that_is_interrupted_loses_nothing(run, monkeypatch):
    torch.save(checkpoint(2, 25), run.previous)
    run.last.write_bytes(b"truncated")
    with monkeypatch.context() as patch, pytest.raises(WriteError):
        patch.setattr(run_folder, "link_or_copy", fail)
        run.begin(SETTINGS)
    assert run.last.exists() and run.begin(SETTINGS) == Done(run.last, 2, 25)
    run.last.unlink()
    with pytest.raises(UserError, match="already contains a run; add resume=auto"):
        run.check_free(resume=False)
    with pytest.raises(UserError, match="other settings"):
        run.begin({**SETTINGS, "seed": 2})
    assert run.begin(SETTINGS) == Done(run.last, 2, 25)


def fail(source, target):
    raise WriteError.of(target, OSError(errno.ENOSPC, "No space left on device"))


def test_a_checkpoint_without_training_state(run):
    torch.save({"state_dict": {}}, run.last)
    with pytest.raises(UserError, match=r"last\.ckpt: has no training state .KeyError: 'loops'"):
        run.done()


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{", b"[1, 2]\n: x"])
def test_settings_that_were_lost(run, content):
    """Damaged as by a crash of the machine; after deleting the file, the settings of the command apply."""
    (run.path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml: is damaged .*delete it to continue") as error:
        run.begin(SETTINGS)
    assert len(str(error.value)) < 400
    (run.path / "config.yaml").unlink()
    assert run.begin(SETTINGS) == Done(run.last, 3, 30)


def test_other_cases_are_refused(run):
    """A former training case must not be used for validation."""
    with pytest.raises(UserError, match=r"other cases \(labelled: \+c, -b; validation: \+b, -c\); restore them"):
        run.keep_cases({"labelled": ["a", "c"], "unlabelled": [], "validation": ["b"]})
    assert json.loads((run.path / "cases.json").read_text()) == CASES
    (run.path / "cases.json").unlink()  # a run of an earlier version
    run.keep_cases(CASES)


def test_one_run_writes_at_a_time(run):
    with run.writing():
        logging.getLogger().warning("written")
        with pytest.raises(UserError, match="another run is writing to this folder"), run.writing():
            pass
    with run.writing():
        pass
    assert "written" in (run.path / "train.log").read_text()
    assert not list(run.path.glob(".*"))
