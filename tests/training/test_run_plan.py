"""The plan of a run is said before it starts, measured, and measuring changes nothing."""

import re
from datetime import datetime, timedelta

import pandas as pd
import pytest
import torch

from dlunet.errors import UserError
from dlunet.training import run_plan
from dlunet.training.module import SegmentationModule
from tests.commands import TINY

#: A method with a state of its own, and one with random numbers for each patch.
METHODS = (pytest.param("dhc", marks=pytest.mark.slow), "unimatch")


def test_a_dry_run_says_its_plan_and_trains_nothing(place, dlunet):
    words = ("train", *TINY, "experiment=ssl_light", "method.supervised_epochs=1", "output=dry")
    printed = dlunet(*words, "dry_run=true", "sampling.accumulate_grad_batches=2", cwd=place).all
    plan = dict(re.findall(r"^(\w[\w ]*?)  +(.*)$", printed, re.MULTILINE))
    assert plan["data"] == "flare22: 3 labelled, 4 unlabelled, 1 validation"
    assert plan["voxels"] == "8×8×8 mm, patches of 16×32×32 (z, y, x)"
    assert plan["patches of a case per epoch"] == "labelled: 2.67, unlabelled_i: 2, unlabelled_j: 2"
    parameters = int(re.search(r"a: LightUNet, ([\d,]+) parameters", plan["networks"])[1].replace(",", ""))
    assert plan["steps"] == "8 left of 2 epochs with 4 steps"
    assert float(plan["time of a step"].split()[0]) > 0 and float(plan["memory of a step"].split()[0]) > 0.1
    assert not (place / "dry" / "checkpoints").exists() and not (place / "dry" / "scores").exists()
    dlunet(*words, "sampling.accumulate_grad_batches=2", cwd=place)  # is no run to be resumed
    state = torch.load(place / "dry" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert sum(value.numel() for name, value in state.items() if name.startswith("networks.a.")) == parameters


def test_the_end_of_a_run_follows_from_the_time_of_a_step(place, dlunet, monkeypatch):
    monkeypatch.setattr(run_plan, "try_steps", lambda *_: run_plan.Cost(450.0, 3 * 2**30))
    before = datetime.now()
    unused = ("recipe.supervised_epochs=1", "recipe.decay=0")  # the latter is used
    printed = dlunet("train", *TINY, "output=timed", "dry_run=true", *unused, cwd=place).all
    assert "recipe.supervised_epochs=1: has no effect here" in printed and "decay" not in printed
    assert "memory of a step             3.00 GiB, measured" in printed
    assert "time of a step               450 s, measured" in printed
    when, rest = re.search(r"expected end +(\d{4}-\d\d-\d\d \d\d:\d\d), in ([\d:]+), plus", printed).groups()
    assert rest == "1:00:00"  # of 8 steps
    minute, hour = timedelta(minutes=1), timedelta(hours=1)
    assert before - minute <= datetime.fromisoformat(when) - hour <= datetime.now()


def test_a_dry_run_of_a_run_that_was_stopped_in_its_first_epoch(place, dlunet, monkeypatch):
    words = ("train", *TINY, "output=begun", "optimizer/schedule=poly")
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "on_validation_epoch_end", lambda *_: (_ for _ in ()).throw(UserError("end")))
        dlunet(*words, cwd=place, fails=True)
    before = contents(place / "begun")
    printed = dlunet(*words, "dry_run=true", "resume=auto", cwd=place).all
    assert "5 left of 2 epochs" in printed and contents(place / "begun") == before


def test_a_dry_run_of_a_finished_run_that_is_to_be_made_longer(place, dlunet):
    """Its files stay as they are; with other settings it is refused, as the run would be."""
    words = ("train", *TINY, "experiment=sup_light", "output=finished", "resume=auto")
    dlunet(*words, cwd=place)
    before, dry = contents(place / "finished"), (*words, "logger=tensorboard", "dry_run=true")
    assert "4 left of 3 epochs" in dlunet(*dry, "trainer.max_epochs=3", cwd=place).all
    assert "optimizer.algorithm.lr: found 0.02" in dlunet(*dry, "optimizer.algorithm.lr=1", cwd=place, fails=True).all
    assert contents(place / "finished") == before


def contents(folder):
    """The files of a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_step_is_measured_in_the_precision_of_training(place, dlunet, monkeypatch):
    seen = []

    def gradients(self, *arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        raise UserError("seen")

    monkeypatch.setattr(SegmentationModule, "gradients", gradients)
    words = ("train", *TINY, "output=precise", "dry_run=true")
    for precision in ("bf16-mixed", "32-true"):
        dlunet(*words, f"trainer.precision={precision}", cwd=place, fails=True)
    assert seen == [True, False]


@pytest.mark.parametrize("method", METHODS)
def test_measuring_changes_nothing(place, dlunet, monkeypatch, method):
    words = ("train", *TINY, f"method={method}", "trainer.log_every_n_steps=1")
    dlunet(*words, f"output={method}-measured", cwd=place)
    monkeypatch.setattr(run_plan, "try_steps", lambda *_: run_plan.Cost(1.0, 2**30))
    dlunet(*words, f"output={method}-not", cwd=place)
    tables = [pd.read_csv(place / f"{method}-{part}" / "metrics.csv") for part in ("measured", "not")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
