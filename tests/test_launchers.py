"""Sweeps in several processes: what fails or is killed does not touch the rest, and is finished by the next command."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
import submitit
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from submitit.core.utils import UncompletedJobError

from dlunet import cli, pipelines, sweeps
from dlunet.errors import UserError
from dlunet.signals import Stopped
from dlunet.training.metrics_file import best_value
from tests.commands import TINY
from tests.forked import TIMEOUT

optuna.logging.disable_default_handler()  # it would keep the stderr of the first test that searches

#: Settings with strings that contain a path are given once, so that they do not appear in the names of runs.
SWEEP = ("train", "-m", *TINY, "experiment=sup_light", "hydra.sweep.dir=sweep", "resume=auto", "test=true")


def times(folder):
    """The times of change of all files of a run."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def finished(folder):
    """The runs that are scored; this file is written last."""
    return {path.parent.parent.name for path in folder.glob("*/scores/references.json")}


def holds(process, folder):
    """Whether a process has a file of a folder open, such as the lock of a run."""
    with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
        return any(Path(file.path).is_relative_to(folder) for file in process.open_files())
    return False


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


def broken(config):
    """A training with a bug, as in a plug-in, but for the second seed."""
    if config.seed != 1:
        raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later.")
    (Path(config.output) / "metrics.csv").write_text("epoch,step,val/dsc\n0,0,0.5\n")


def test_a_run_that_fails_unexpectedly_does_not_stop_the_others_and_is_named(tmp_path, dlunet, monkeypatch):
    monkeypatch.setattr(pipelines, "train", broken)
    message = dlunet("train", "-m", "hydra.sweep.dir=here", "seed=0,1,2", cwd=tmp_path, fails=True).stderr
    assert message.splitlines() == [
        *(f"dlunet: seed{seed}: RuntimeError: CUDA error: device-side assert triggered" for seed in (0, 2)),
        "dlunet: here: 2 runs failed: seed0, seed2; failed.txt in the folder of each says why; rerun the command with "
        "resume=auto to finish what is missing",
    ]
    assert (tmp_path / "here" / "seed1" / "metrics.csv").is_file()
    for seed in (0, 2):
        reason = (tmp_path / "here" / f"seed{seed}" / "failed.txt").read_text()
        assert reason.startswith("Traceback") and "in broken" in reason and "might be reported later" in reason
    assert not (tmp_path / "here" / "seed1" / "failed.txt").exists()


def test_a_single_run_that_fails_unexpectedly_ends_with_its_error(tmp_path, dlunet, monkeypatch):
    monkeypatch.setattr(pipelines, "train", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        dlunet("train", "seed=0", "output=here", cwd=tmp_path)
    assert not list(tmp_path.rglob("failed.txt"))


def test_a_signal_stops_all_runs(tmp_path, dlunet, monkeypatch):
    def stopped(config):
        seeds.append(config.seed)
        raise Stopped(signal.SIGTERM)

    seeds = []
    monkeypatch.setattr(pipelines, "train", stopped)
    monkeypatch.setattr("tests.commands.checked", lambda code, out, err, fails: (code, err))
    code, message = dlunet("train", "-m", "hydra.sweep.dir=here", "seed=0,1", cwd=tmp_path)
    assert (code, seeds) == (128 + signal.SIGTERM, [0]) and "stopped by SIGTERM" in message
    assert not list(tmp_path.rglob("failed.txt"))


def killed(number):
    """A command whose run with one of the seeds is killed by a signal."""
    return lambda config: os.kill(os.getpid() if number > 0 else os.getppid(), abs(number)) if config.seed else 0.0


def sweep_of_two(dlunet, place):
    """What a sweep of two runs at once prints, whose folder is ``here``: joblib's processes keep their own folder."""
    words = ("launcher=local", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={place / 'here'}", "seed=0,1")
    return dlunet("train", "-m", *words, cwd=place, fails=True).stderr


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "SIGKILL: memory probably ran out"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_run_that_is_killed_does_not_stop_the_others_and_is_named(tmp_path, dlunet, monkeypatch, number, said):
    monkeypatch.setitem(cli.VERBS, "train", killed(number))
    message = sweep_of_two(dlunet, tmp_path)
    assert "/here: 1 run failed: seed1; failed.txt in the folder of each says why" in message
    reason = (tmp_path / "here" / "seed1" / "failed.txt").read_text()
    assert reason == f"the process of this run ended with {said}"


def test_a_single_run_at_a_time_needs_no_further_process(tmp_path, dlunet, monkeypatch):
    """Nor is it forked from this one, where CUDA may be in use."""
    processes = []
    monkeypatch.setitem(cli.VERBS, "train", lambda config: processes.append(os.getpid()))
    words = ("launcher=local", "hydra.launcher.n_jobs=1", f"hydra.sweep.dir={tmp_path / 'here'}", "seed=0,1")
    dlunet("train", "-m", *words, cwd=tmp_path)
    assert processes == [os.getpid()] * 2


def test_a_killed_process_of_joblib_ends_the_sweep_with_one_message(tmp_path, dlunet, monkeypatch):
    monkeypatch.setitem(cli.VERBS, "train", killed(-signal.SIGKILL))
    message = sweep_of_two(dlunet, tmp_path)
    assert "/here: the sweep was ended by TerminatedWorkerError: A worker process" in message
    assert "SIGKILL" in message and "rerun the command with resume=auto to finish what is missing" in message


@pytest.fixture
def slurm(monkeypatch):
    """The launcher's executor of each sweep on a cluster of which the second job is killed."""

    def submit(executor, launcher, *arguments):
        executors.append(executor._executor)
        return [FakeJob("1_0", JobReturn(status=JobStatus.COMPLETED)), FakeJob("1_1", None)]

    executors = []
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", staticmethod(lambda: 1))
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", submit)
    return executors


@dataclass
class FakeJob:
    """A job of a cluster; without a result, it was killed."""

    name: str
    result: JobReturn | None

    def results(self):
        if self.result is None:
            said = f"Job {self.name} (task: 0) with path here/.submitit/{self.name}\nhas not produced any output"
            raise UncompletedJobError(f"{said} (state: OUT_OF_MEMORY)\nError stream produced:\n{'-' * 40}\nloading")
        return [self.result]


def test_a_killed_job_of_a_cluster_ends_the_waiting_with_one_message_that_names_it(tmp_path, dlunet, slurm):
    words = ("launcher=slurm", "hydra.sweep.dir=here", "seed=0,1")
    message = dlunet("train", "-m", *words, cwd=tmp_path, fails=True).stderr
    assert message.splitlines() == [
        "dlunet: here: the sweep was ended by UncompletedJobError: Job 1_1 (task: 0) with path here/.submitit/1_1 has "
        "not produced any output (state: OUT_OF_MEMORY); rerun the command with resume=auto to finish what is missing; "
        "HYDRA_FULL_ERROR=1 shows where it ended"
    ]


def test_a_job_of_slurm_may_reach_its_time_limit_many_times(tmp_path, dlunet, slurm):
    dlunet("train", "-m", "launcher=slurm", "hydra.sweep.dir=here", "seed=0,1", cwd=tmp_path, fails=True)
    dlunet("train", "-m", "launcher=slurm", "hydra.launcher.max_num_timeout=3", "seed=2,3", cwd=tmp_path, fails=True)
    assert [(executor.max_num_timeout, executor.parameters["time"]) for executor in slurm] == [(100, 1440), (3, 1440)]


def test_a_job_that_may_not_be_requeued_once_more_notes_it(tmp_path, monkeypatch):
    """Submitit's handler of the signal, to which it is passed on, raises an error then."""

    def refuse(number, frame):
        raise UncompletedJobError("Job not requeued because: timed-out too many times.")

    config = OmegaConf.create({"launcher": {"_target_": "submitit"}, "runtime": {"output_dir": str(tmp_path)}})
    monkeypatch.setattr(HydraConfig, "get", lambda: config)
    before = signal.signal(signal.SIGUSR2, refuse)
    try:
        with sweeps.noting_failures():
            raise Stopped(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert "timed-out too many times" in (tmp_path / "failed.txt").read_text()


@pytest.mark.slow
def test_a_run_that_is_killed_is_finished_by_the_next_command(place, start_dlunet, dlunet_process):
    """The other three are finished by the first command, and the next one does not touch them."""
    words = (*SWEEP, "launcher=local", "hydra.launcher.n_jobs=2", "seed=0,1,2,3", "trainer.max_epochs=3")
    with start_dlunet(*words, cwd=place, fresh=True) as process:
        while not (trained := list(place.glob("sweep/*/metrics.csv"))):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        victim = trained[0].parent.name
        runs = [child for child in psutil.Process(process.pid).children(True) if holds(child, trained[0].parent)]
        for run in runs:
            run.kill()
        message = process.communicate(timeout=TIMEOUT)[1]
    assert runs and process.returncode == 1 and f"1 run failed: {victim}; failed.txt" in message
    names = {f"sup_light_seed{seed}" for seed in range(4)}
    done = finished(place / "sweep")
    assert done == names - {victim}
    before = {name: times(place / "sweep" / name) for name in done}
    dlunet_process(*words, cwd=place, fresh=True)
    assert finished(place / "sweep") == names
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


def test_a_search_by_optuna_and_again(place, dlunet):
    words = ("hydra.sweeper.n_trials=2", "hydra.sweep.dir=search", "resume=auto")
    words = (*words, "experiment=sup_light", "trainer.max_epochs=1")
    dlunet("train", "-m", *TINY, "sweeper=optuna", *words, cwd=place)
    runs = [path.parent for path in place.glob("search/*/metrics.csv")]
    assert len(runs) == 2
    best = max(pd.read_csv(run / "metrics.csv")["val/dsc"].max() for run in runs)
    assert best_value(max(runs, key=lambda run: best_value(run, "val/dsc")), "val/dsc") == best
    results = place / "search" / "optimization_results.yaml"
    found = yaml.safe_load(results.read_text())
    assert found["best_value"] == best and set(found["best_params"]) >= {"optimizer.algorithm.lr", "loss"}
    before = {run: times(run) for run in runs}
    dlunet("train", "-m", *TINY, "sweeper=optuna", *words, cwd=place)  # the same trials, which are finished
    assert {path.parent: times(path.parent) for path in place.glob("search/*/metrics.csv")} == before
    assert yaml.safe_load(results.read_text()) == found


#: The search of docs/scaling.md, with few trials.
SEARCH = ("train", "-m", "sweeper=optuna", "data=folders", "data.root=mine", "data.names=[liver,tumour]", "resume=auto")


def test_a_trial_that_fails_does_not_stop_the_search(tmp_path, dlunet, monkeypatch):
    def train(config):
        trained.append(config)
        if len(trained) < 3:
            raise UserError("no")
        (Path(config.output) / "metrics.csv").write_text("epoch,step,val/dsc\n0,0,0.5\n")

    trained = []
    monkeypatch.setattr(pipelines, "train", train)
    output = dlunet(*SEARCH, "hydra.sweeper.n_trials=4", "hydra.sweep.dir=search", cwd=tmp_path, fails=True)
    assert "search: 2 runs failed: " in output.stderr and "max_failure_rate" not in output.all
    assert [list(config.data.names) for config in trained] == [["liver", "tumour"]] * 4
    assert yaml.safe_load((tmp_path / "search" / "optimization_results.yaml").read_text())["best_value"] == 0.5


def test_a_search_whose_trials_all_fail_says_so_in_one_message(tmp_path, dlunet):
    message = dlunet(*SEARCH, "hydra.sweeper.n_trials=2", "hydra.sweep.dir=search", cwd=tmp_path, fails=True).stderr
    assert len(list((tmp_path / "search").glob("*/failed.txt"))) == 2
    last = message.splitlines()[-1]
    assert last.startswith("dlunet: search: 2 runs failed: ") and "No trials are completed" in last


def claim(monkeypatch, tmp_path, count, job=None, number=0):
    """The GPU that a process, of a job of SLURM, claims of a machine with some, and its lock."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(sweeps.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    try:
        lock = sweeps.claim_gpu(number=number)
        return os.environ.get("CUDA_VISIBLE_DEVICES"), lock
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)


@pytest.mark.parametrize("count", [0, 1])
def test_no_choice_of_gpus(monkeypatch, tmp_path, count):
    assert claim(monkeypatch, tmp_path, count) == (None, None)


def test_each_process_claims_a_gpu_of_its_own(monkeypatch, tmp_path, capsys):
    """There are three; further runs share them in turn."""
    claims = [claim(monkeypatch, tmp_path, 3) for _ in range(3)]
    assert [gpu for gpu, _ in claims] == ["0", "1", "2"] and not capsys.readouterr().err
    shared = [claim(monkeypatch, tmp_path, 3, number=number) for number in (3, 4, 5, 6)]
    assert shared == [("0", None), ("1", None), ("2", None), ("0", None)]
    assert capsys.readouterr().err.count("more runs than GPUs at once: this one shares GPU ") == 4
    for _, lock in claims:
        lock.release()


@pytest.mark.parametrize("devices", [2, [0, 1]])
def test_runs_on_several_gpus_are_refused(monkeypatch, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match=r"trainer.devices: found .* with launcher=local, which gives each run one GPU"):
        sweeps.claim_gpu(devices)


def test_the_gpus_of_a_job_of_slurm_are_its_own(monkeypatch, tmp_path):
    """Two jobs on a node see other GPUs by the same numbers."""
    claims = [claim(monkeypatch, tmp_path, 3, job) for job in ("7", "7", "8", "8", "7", None)]
    assert [gpu for gpu, _ in claims] == ["0", "1", "0", "1", "2", "0"]
    for _, lock in claims:
        lock.release()
