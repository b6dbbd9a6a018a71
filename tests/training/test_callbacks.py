"""Callbacks and short runs that a config chooses."""

import pandas as pd
import pytest
import torch

from dlunet.errors import UserError
from dlunet.labels import FLARE22
from tests.commands import TINY


def rows(run, column):
    return pd.read_csv(run / "metrics.csv")[column].dropna().tolist()


def test_early_stopping_and_the_norms_of_weights(place, dlunet):
    """With an infinitesimal learning rate, no validation is better than the first one."""
    chosen = ("callback=[early_stopping,weight_norms]", "callbacks.early_stopping.patience=1")
    words = ("experiment=sup_light", "trainer.max_epochs=9", "optimizer.algorithm.lr=1e-12", "output=stopped")
    dlunet("train", *TINY, *words, *chosen, cwd=place)
    run = place / "stopped"
    assert len(rows(run, "val/dsc")) == 2
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = torch.cat([value.flatten() for name, value in state.items() if name.startswith("networks.a.")])
    assert rows(run, "train/weight_norm_a")[-1] == pytest.approx(float(weights.norm()), rel=1e-5)
    before = {path: path.read_bytes() for path in run.rglob("*.c*")}
    assert "stopped early after 2 epochs" in dlunet("train", *TINY, *words, *chosen, "resume=auto", cwd=place).stdout
    assert before == {path: path.read_bytes() for path in run.rglob("*.c*")}
    dlunet("train", *TINY, *words, "trainer.max_epochs=3", "callback=[weight_norms]", "resume=auto", cwd=place)
    assert len(rows(run, "val/dsc")) == 3


@pytest.fixture
def scores(monkeypatch):
    """``scores(dsc, …)`` are those of the next validations; the one after them fails."""
    left = []

    def validate(module):
        if not left:
            raise UserError("no score is left")
        module.log("val/dsc", torch.tensor(left.pop(0)))

    monkeypatch.setattr("dlunet.training.module.SegmentationModule.on_validation_epoch_end", validate)
    return lambda *values: left.extend(values)


STOPPING = ("+callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.mine.monitor=val/dsc")


def test_a_run_that_was_stopped_goes_on_with_more_patience(place, dlunet, scores):
    """Whatever the name of the callback."""
    words = ("train", *TINY, "experiment=sup_light", "trainer.max_epochs=9", "output=patient", "resume=auto")
    words = (*words, "sampling.steps_per_epoch=1", *STOPPING, "+callbacks.mine.mode=max")
    scores(0.5, 0.4)
    dlunet(*words, "+callbacks.mine.patience=1", cwd=place)
    assert "stopped early after 2 epochs" in dlunet(*words, "+callbacks.mine.patience=1", cwd=place).stdout
    scores(0.3, 0.2)
    dlunet(*words, "+callbacks.mine.patience=3", cwd=place)
    assert rows(place / "patient", "val/dsc") == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert "stopped early after 4 epochs" in dlunet(*words, "+callbacks.mine.patience=3", cwd=place).stdout


def test_a_run_that_went_on_for_its_fewest_epochs_was_not_stopped(place, dlunet, scores):
    """It is interrupted after an epoch in which it would have been stopped, and then again better than ever."""
    words = ("train", *TINY, "experiment=sup_light", "trainer.max_epochs=5", "+trainer.min_epochs=3", "output=fewest")
    words = (*words, "sampling.steps_per_epoch=1", "callback=early_stopping", "callbacks.early_stopping.patience=1")
    scores(0.5, 0.4)
    assert "no score is left" in dlunet(*words, cwd=place, fails=True).stderr
    scores(0.6, 0.7, 0.8)
    dlunet(*words, "resume=auto", cwd=place)
    assert rows(place / "fewest", "val/dsc") == pytest.approx([0.5, 0.4, 0.6, 0.7, 0.8])


def test_early_stopping_without_validation_is_refused(place, dlunet):
    """Before anything is prepared."""
    names = f"data.names=[{','.join(label.name for label in FLARE22)}]"
    data = ("data=folders", "data.root=flare22/Training/FLARE22_LabeledCase50", names, "data.fold=all")
    words = ("train", "scale=tiny", *data, "data.prepared=not_prepared", "experiment=sup_light", *STOPPING)
    message = dlunet(*words, cwd=place, fails=True).stderr
    assert "callbacks.mine: found monitor=val/dsc, but no validation case" in message and "data.fold=0" in message
    assert not (place / "not_prepared").exists()


def test_the_largest_dsc_is_the_best(place, dlunet, scores):
    """It is kept, and early stopping counts from it."""
    scores(0.2, 0.8, 0.5, 0.9)
    words = ("experiment=sup_light", "trainer.max_epochs=9", "callback=early_stopping", "output=best")
    dlunet("train", *TINY, *words, "callbacks.early_stopping.patience=1", cwd=place)
    assert rows(place / "best", "val/dsc") == pytest.approx([0.2, 0.8, 0.5])
    assert torch.load(place / "best" / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 1


def test_a_callback_that_does_not_accept_its_settings(place, dlunet):
    words = ("callback=early_stopping", "+callbacks.early_stopping.patiense=3", "output=wrong")
    message = dlunet("train", *TINY, *words, cwd=place, fails=True).stderr
    assert "callbacks.early_stopping: " in message and "patiense" in message


def test_debug_fast(place, dlunet):
    dlunet("train", *TINY, "debug=fast", "experiment=ssl_light", cwd=place)
    assert len(rows(place / "runs/debug-fast-ssl_light-seed0", "train/loss")) == 10


def test_debug_overfit(place, dlunet):
    """Without an optimiser's progress, every epoch has the same losses: the patches repeat."""
    words = ("debug=overfit", "experiment=sup_light", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=3")
    dlunet("train", *TINY, *words, "output=still", "optimizer.algorithm.lr=1e-20", cwd=place)
    losses = rows(place / "still", "train/loss")
    assert losses[:4] == losses[4:8] == losses[8:] and len(set(losses[:4])) > 1
    dlunet("train", *TINY, "debug=overfit", "experiment=sup_light", "trainer.max_epochs=30", cwd=place)
    (run,) = (place / "runs").glob("debug-overfit-*")
    losses = rows(run, "train/loss")
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_debug_profile(place, dlunet):
    dlunet("train", *TINY, "debug=profile", "experiment=sup_light", "sampling.steps_per_epoch=3", cwd=place)
    (run,) = (place / "runs").glob("debug-profile-*")
    assert "run_training_batch" in (run / "fit-profile.txt").read_text()
