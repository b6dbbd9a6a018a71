"""Checkpoints are written atomically and survive moving the run folder."""

import errno
import os
import random
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dlunet.errors import UserError
from dlunet.networks import checkpoint_files
from dlunet.networks.checkpoint_files import damage_of, read_checkpoint
from dlunet.training.checkpoint import MovableCheckpoint, WholeCheckpointIO


def callback(folder, kind=MovableCheckpoint):
    return kind(folder, "best", "val/dsc", mode="max", enable_version_counter=False)


@pytest.fixture
def state(tmp_path):
    """Lightning's state for a best checkpoint with a score of 0.8."""
    first = callback(tmp_path / "before")
    path = str(tmp_path / "before" / "best.ckpt")
    first.best_model_path = first.kth_best_model_path = path
    first.best_model_score = first.kth_value = torch.tensor(0.8)
    first.best_k_models = {path: torch.tensor(0.8)}
    return first.state_dict()


@pytest.mark.parametrize("folder", ["before", "moved"])
def test_the_best_score_counts_wherever_the_folder_lies(tmp_path, state, folder):
    path = tmp_path / folder / "best.ckpt"
    path.parent.mkdir()
    torch.save({}, path)
    moved = callback(path.parent)
    moved.load_state_dict(state)
    assert moved.best_model_score == moved.kth_value == 0.8
    assert moved.best_k_models == {str(path): torch.tensor(0.8)} and moved.best_model_path == str(path)
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))
    assert not moved.check_monitor_top_k(trainer, torch.tensor(0.7))
    assert moved.check_monitor_top_k(trainer, torch.tensor(0.9))


def test_a_score_without_its_file_does_not_count(tmp_path, state):
    """Otherwise a later epoch would have to beat a checkpoint that no longer exists."""
    moved = callback(tmp_path / "moved")
    moved.load_state_dict(state)
    assert moved.best_model_score is None and moved.check_monitor_top_k(None, torch.tensor(0.7))


def test_a_score_whose_file_is_damaged_does_not_count(tmp_path, state, caplog):
    path = tmp_path / "moved" / "best.ckpt"
    path.parent.mkdir()
    torch.save({}, path)
    path.write_bytes(path.read_bytes()[:-100])
    moved = callback(path.parent)
    moved.load_state_dict(state)
    assert moved.best_model_score is None and f"{path}: is damaged" in caplog.text


def test_a_score_whose_file_cannot_be_read_now_is_kept(tmp_path, state, monkeypatch):
    """As on a network disk that does not answer: no other epoch may replace the file."""
    path = tmp_path / "moved" / "best.ckpt"
    path.parent.mkdir()
    torch.save({}, path)
    monkeypatch.setattr(checkpoint_files.zipfile, "ZipFile", stale)
    with pytest.raises(UserError, match=r"best.ckpt: cannot be opened .Stale file handle"):
        callback(path.parent).load_state_dict(state)


def stale(path):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_whatever_is_damaged_in_a_checkpoint_is_noticed(tmp_path):
    path, rng = tmp_path / "last.ckpt", random.Random(0)
    torch.save({"weights": torch.ones(100)}, path)
    whole = path.read_bytes()
    assert damage_of(path) is None
    noticed = 0
    for _ in range(400):
        content = bytearray(whole)
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        damage_of(path)  # whatever is damaged, it raises no error
        try:
            assert torch.equal(read_checkpoint(path)["weights"], torch.ones(100))  # such as in padding
        except UserError:
            noticed += 1
    assert noticed > 100


def test_what_lightning_s_own_callback_saved_is_found(tmp_path):
    """The state has the same key in the checkpoint."""
    assert callback(tmp_path).state_key == callback(tmp_path, ModelCheckpoint).state_key


def full(_):
    raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"epoch": 1}, path)
    monkeypatch.setattr("dlunet.files.os.fsync", full)
    with pytest.raises(UserError, match=f"{path}: could not be written .No space left"):
        WholeCheckpointIO().save_checkpoint({"epoch": 2}, str(path))
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_score_whose_checkpoint_could_not_be_written_does_not_count(tmp_path, monkeypatch):
    """With validations of the scores below, and a disk that is full at the first and the third one."""
    best, files = callback(tmp_path), WholeCheckpointIO("continue")
    strategy = SimpleNamespace(checkpoint_io=files, broadcast=lambda value: value, reduce_boolean_decision=bool)
    trainer = SimpleNamespace(strategy=strategy, is_global_zero=True, loggers=[], global_step=0)
    room = os.fsync
    for score, disk, expected in [(0.5, full, None), (0.4, room, 0.4), (0.8, full, 0.4), (0.6, room, 0.6)]:
        monkeypatch.setattr("dlunet.files.os.fsync", disk)
        trainer.save_checkpoint = lambda path, _, score=score: files.save_checkpoint({"score": score}, path)
        assert best.check_monitor_top_k(trainer, torch.tensor(score))
        best._update_best_and_save(torch.tensor(score), trainer, {"val/dsc": torch.tensor(score)})
        assert best.best_model_score == (None if expected is None else torch.tensor(expected))
        assert expected is None or torch.load(best.best_model_path, weights_only=True) == {"score": expected}
