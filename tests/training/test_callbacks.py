"""Callbacks and short runs that a config chooses."""

import pandas as pd
import pytest
import torch

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


def test_the_largest_dsc_is_the_best(place, dlunet, monkeypatch):
    """It is kept, and early stopping counts from it."""
    scores = iter([0.2, 0.8, 0.5, 0.9])
    monkeypatch.setattr(
        "dlunet.training.module.SegmentationModule.on_validation_epoch_end",
        lambda module: module.log("val/dsc", torch.tensor(next(scores))),
    )
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
    shorter = ("trainer.max_epochs=30", "trainer.check_val_every_n_epoch=30")
    assert losses[:4] == losses[4:8] == losses[8:] and len(set(losses[:4])) > 1
    dlunet("train", *TINY, "debug=overfit", "experiment=sup_light", *shorter, cwd=place)
    (run,) = (place / "runs").glob("debug-overfit-*")
    losses = rows(run, "train/loss")
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_debug_profile(place, dlunet):
    dlunet("train", *TINY, "debug=profile", "experiment=sup_light", "sampling.steps_per_epoch=3", cwd=place)
    (run,) = (place / "runs").glob("debug-profile-*")
    assert "run_training_batch" in (run / "fit-profile.txt").read_text()
