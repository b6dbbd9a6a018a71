"""Sweeps in several processes: what fails or is killed does not touch the rest, and is finished by the next command."""

import os
import time

import pandas as pd
import psutil
import pytest
import torch
import yaml

from dlunet import sweeps
from dlunet.training.metrics_file import best_value
from tests.commands import TINY
from tests.forked import TIMEOUT

#: Settings with strings that contain a path are given once, so that they do not appear in the names of runs.
SWEEP = ("train", "-m", *TINY, "experiment=sup_light", "hydra.sweep.dir=sweep", "resume=auto", "test=true")


def times(folder):
    """The times of change of all files of a run."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def finished(folder):
    """The runs that are scored; this file is written last."""
    return {path.parent.parent.name for path in folder.glob("*/scores/references.json")}


def test_a_run_that_fails_does_not_stop_the_others_and_is_named(place, dlunet):
    words = ("train", "-m", *TINY, "experiment=sup_light", "hydra.sweep.dir=failing", "resume=auto", "seed=0,1")
    message = dlunet(*words, "optimizer.algorithm.lr=1e30,0.02", cwd=place, fails=True).stderr
    runs = {path.name for path in (place / "failing").iterdir() if path.is_dir()}
    bad = {name for name in runs if "1e" in name}
    assert len(runs) == 4 and len(bad) == 2
    assert {path.parent.name for path in place.glob("failing/*/failed.txt")} == bad
    assert {path.parents[1].name for path in place.glob("failing/*/checkpoints/last.ckpt")} == runs - bad
    assert "failing: 2 runs failed" in message and message.count("gradients are not finite") == 2
    dlunet(*words, cwd=place)  # without what failed: no failure of an earlier command is named


@pytest.mark.slow
def test_a_run_that_is_killed_is_finished_by_the_next_command(place, start_dlunet, dlunet_process):
    words = (*SWEEP, "launcher=local", "hydra.launcher.n_jobs=2", "seed=0,1,2,3", "trainer.max_epochs=3")
    with start_dlunet(*words, cwd=place, fresh=True) as process:
        while not finished(place / "sweep"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        workers = [child for child in psutil.Process(process.pid).children(True) if "loky" in " ".join(child.cmdline())]
        busiest = max(workers, key=lambda worker: sum(worker.cpu_times()[:2]))
        busiest.kill()
        process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    done = finished(place / "sweep")
    before = {name: times(place / "sweep" / name) for name in done}
    assert 0 < len(done) < 4
    dlunet_process(*words, cwd=place, fresh=True)
    assert finished(place / "sweep") == {f"sup_light_seed{seed}" for seed in range(4)}
    assert {name: times(place / "sweep" / name) for name in done} == before


@pytest.mark.slow
def test_a_job_of_submitit_with_two_processes(place, dlunet_process):
    """As in a cluster, but on this machine; the network is that of one process with the same patches."""
    short = ("trainer.max_epochs=1", "sampling.steps_per_epoch=2", "trainer.precision=64-true")
    words = (*TINY, "experiment=ssl_light", *short)
    dlunet_process("train", *words, "output=alone", "sampling.batch_size=2", cwd=place)
    job = ("hydra/launcher=submitit_local", "hydra.sweep.dir=jobs", "trainer.devices=2", "trainer.accelerator=cpu")
    dlunet_process("train", "-m", *words, *job, "hydra.launcher.submitit_folder=submitit", cwd=place)
    (run,) = place.glob("jobs/*/checkpoints/last.ckpt")
    files = (place / "alone" / "checkpoints" / "last.ckpt", run)
    states = [torch.load(path, weights_only=True)["state_dict"] for path in files]
    assert all((states[1][name] - value).abs().max() <= 1e-6 for name, value in states[0].items())


def test_a_search_by_optuna(place, dlunet):
    words = ("hydra.sweeper.n_trials=2", "hydra.sweep.dir=search", "experiment=sup_light", "trainer.max_epochs=1")
    dlunet("train", "-m", *TINY, "sweeper=optuna", *words, cwd=place)
    runs = [path.parent for path in place.glob("search/*/metrics.csv")]
    assert len(runs) == 2
    best = max(pd.read_csv(run / "metrics.csv")["val/dsc"].max() for run in runs)
    assert best_value(max(runs, key=lambda run: best_value(run, "val/dsc")), "val/dsc") == best
    found = yaml.safe_load((place / "search" / "optimization_results.yaml").read_text())
    assert found["best_value"] == best and set(found["best_params"]) >= {"optimizer.algorithm.lr", "loss"}


def claim(monkeypatch, tmp_path, count):
    """The GPU that a new process claims of a machine with some."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(sweeps.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    held, sweeps._CLAIMED[:] = sweeps._CLAIMED[:], []
    try:
        sweeps.claim_gpu()
        return os.environ.get("CUDA_VISIBLE_DEVICES"), [*held, *sweeps._CLAIMED]
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)


@pytest.mark.parametrize("count", [0, 1])
def test_no_choice_of_gpus(monkeypatch, tmp_path, count):
    assert claim(monkeypatch, tmp_path, count) == (None, [])


def test_each_process_claims_a_gpu_of_its_own(monkeypatch, tmp_path):
    locks = []
    for expected in ("0", "1", "2", None):  # there are three
        claimed, held = claim(monkeypatch, tmp_path, 3)
        assert claimed == expected
        locks += held
        monkeypatch.setattr(sweeps, "_CLAIMED", [])
    for lock in locks:
        lock.release()
