"""Processes started by a training or together by torchrun or srun: what they learn, and what they write."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from omegaconf import ListConfig, OmegaConf
from torch import nn

from dlunet.errors import UserError
from dlunet.networks import register_network
from dlunet.training.launch import (
    Launch,
    device_count,
    device_to_predict,
    is_first,
    joint_launch,
    launch_settings,
    launched_devices,
    processes_here,
    processes_sharing_cores,
)
from dlunet.training.module import SegmentationModule
from dlunet.training.run import train
from tests.commands import TINY
from tests.forked import TIMEOUT, exit_code_of

#: A training of two steps of two patches, in double precision: sums over patches are in another order.
SHORT = (
    "train", *TINY, "experiment=ssl_light", "trainer.max_epochs=1", "sampling.steps_per_epoch=2",
    "trainer.precision=64-true", "trainer.accelerator=cpu", "test=true",
)  # fmt: skip


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def place(tiny_flare22, tmp_path_factory):
    """A dataset whose validation cases two processes cannot share equally."""
    folder = tmp_path_factory.mktemp("launch")
    tiny_flare22(folder / "flare22", validation=3)
    return folder


@pytest.fixture(scope="module")
def alone(place, dlunet_process):
    """The run of one process with all patches."""
    dlunet_process(*SHORT, "output=alone", "sampling.batch_size=2", cwd=place)
    return place / "alone"


def check_same(run, alone):
    before, after = weights(alone), weights(run)
    assert before.keys() == after.keys()
    assert all((after[name] - value).abs().max() <= 1e-6 for name, value in before.items())
    tables = [pd.read_csv(folder / "metrics.csv") for folder in (alone, run)]
    losses = [table.loc[table["train/loss"].notna(), "train/loss"].tolist() for table in tables]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6) and len(losses[0]) == 2
    scores = [table.filter(like="val/dsc").dropna().reset_index(drop=True) for table in tables]
    pd.testing.assert_frame_equal(scores[1], scores[0], rtol=0, atol=1e-6)
    assert len(scores[0]) == 1
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (alone, run)]
    assert files[0] == files[1]


def test_processes_started_by_the_training(place, alone, dlunet_process):
    (place / "temporary").mkdir()
    words = (*SHORT, "output=spawned", "sampling.batch_size=1", "trainer.devices=2")
    printed = dlunet_process(*words, cwd=place, TMPDIR=str(place / "temporary")).stdout
    check_same(place / "spawned", alone)
    assert not any((place / "temporary").glob("tmp*"))  # through which Lightning passes the weights
    log = (place / "spawned" / "train.log").read_text()
    for said in ("expected end", "scale=tiny"):  # by a process that was started, and by the one that started it
        assert printed.count(said) == log.count(said) == 1


@pytest.mark.slow
def test_processes_started_by_torchrun(place, alone, dlunet):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dlunet"]
    words = (*SHORT, "output=by_torchrun", "sampling.batch_size=1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *words], cwd=place, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("best checkpoint:") == 1
    check_same(place / "by_torchrun", alone)
    message = dlunet(*words, "trainer.max_epochs=2", "resume=auto", cwd=place, fails=True).stderr
    assert "by_torchrun" in message and "trainer.devices" in message  # one process is not two


@register_network
class Normalised(nn.Module):
    """A network with batch normalisation."""

    def __init__(self, in_channels, num_classes, **settings):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm3d(in_channels), nn.Conv3d(in_channels, num_classes, 1))

    def forward(self, x):
        return self.layers(x)


def train_and_keep_states(config):
    """Train in two processes, and write the state of each at the end."""
    disconnected = SegmentationModule.on_fit_end

    def keep(module):
        torch.save(module.state_dict(), Path(f"{config.output}-{module.global_rank}.pt"))
        disconnected(module)

    SegmentationModule.on_fit_end = keep
    train(config)


def test_statistics_of_batch_normalisation_are_the_same_in_all_processes(place, compose):
    """Though each has seen other patches."""
    words = [word.replace("=flare22", f"={place}/flare22") if "root" in word else word for word in SHORT[1:]]
    own = [f"data.prepared={place}/prepared", f"output={place}/normalised", "name=x", "sampling.batch_size=1"]
    config = compose("train", [*words, *own, "trainer.devices=2", "+trainer.strategy=ddp_fork", "test=false"])
    config.network = {"kind": "Normalised", "in_channels": 1}
    assert exit_code_of(train_and_keep_states, config) == 0
    states = [torch.load(place / f"normalised-{rank}.pt") for rank in (0, 1)]
    assert states[0]["networks.a.layers.0.running_var"] != 1
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_config_of_a_run_has_the_processes_that_torchrun_has_started(place, dlunet, monkeypatch):
    monkeypatch.setattr("dlunet.training.run.joint_launch", lambda _: Launch(LightningEnvironment(), 2, 1))
    monkeypatch.setattr("dlunet.training.run._fit", lambda *_: None)
    dlunet(*SHORT, "test=false", "output=counted", cwd=place)
    settings = OmegaConf.load(place / "counted" / "config.yaml").trainer
    assert settings.devices == 2 and "num_nodes" not in settings


@pytest.mark.parametrize(
    ("devices", "chosen"), [(1, 2), ("auto", 2), ("3", 2), ([2, 3], [2, 3]), ([1], 2), ("4,5", "4,5")]
)
def test_the_devices_of_torchrun_are_as_many_as_it_starts(devices, chosen):
    launch = Launch(LightningEnvironment(), 2, 1)
    assert launched_devices({"devices": devices}, launch) == {"devices": chosen, "num_nodes": 1}
    assert launched_devices({"devices": devices}, replace(launch, num_nodes=3)) == {"devices": chosen, "num_nodes": 3}


@pytest.mark.slow
def test_a_dry_run_of_two_processes_writes_nothing(place, dlunet_process):
    words = (*SHORT, "output=planned", "trainer.devices=2", "dry_run=true")
    printed = dlunet_process(*words, cwd=place).stdout
    assert printed.count("2 patches of each stream in 2 process(es)") == 1 and not (place / "planned").exists()


@pytest.mark.parametrize(("devices", "here"), [(1, 1), (3, 3), ([0, 1], 2)])
def test_processes_of_a_training_on_this_machine(monkeypatch, devices, here):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    assert processes_here({"devices": devices}) == here
    for name, value in {"STEP_NUM_TASKS": 8, "NTASKS": 8, "NTASKS_PER_NODE": 4, "PROCID": 3, "LOCALID": 3}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert processes_here({"devices": 4, "num_nodes": 2}) == 4
    assert processes_sharing_cores({"devices": 4, "num_nodes": 2}) == 1  # srun gives each task cores of its own
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert processes_sharing_cores({"devices": devices}) == here


def test_a_process_that_was_started_alone(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    assert joint_launch({"devices": 2}) is None and is_first({"devices": 2})
    settings, _ = launch_settings({"devices": 1, "accelerator": "cpu"})
    assert "strategy" not in settings
    settings, _ = launch_settings({"devices": 2, "accelerator": "cpu", "strategy": "ddp_fork"})
    assert settings["strategy"]._start_method == "fork"
    with pytest.raises(UserError, match=r"trainer.strategy: found ddp; expected one of ddp_spawn, ddp_fork"):
        launch_settings({"devices": 2, "strategy": "ddp"})
    with pytest.raises(UserError, match=r"trainer.num_nodes: found 2"):
        launch_settings({"devices": 2, "num_nodes": 2})


@pytest.mark.parametrize(("devices", "nodes", "joint"), [(2, 2, True), (4, 1, True), (1, 1, False), (2, 1, False)])
def test_tasks_of_srun_are_one_training_if_the_settings_ask_for_as_many(monkeypatch, devices, nodes, joint):
    variables = {"STEP_NUM_TASKS": 4, "NTASKS": 4, "NTASKS_PER_NODE": devices, "PROCID": 3, "LOCALID": 1, "NODEID": 1}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    trainer = {"devices": devices, "num_nodes": nodes, "accelerator": "cpu"}
    launch = joint_launch(trainer)
    assert (launch is not None) == joint and is_first(trainer) != joint
    if joint:
        settings, (environment,) = launch_settings(trainer)
        assert (settings["devices"], settings["num_nodes"]) == (devices, nodes)
        assert isinstance(environment, SLURMEnvironment) and environment.global_rank() == 3
        monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
        with pytest.raises(UserError, match=r"srun: .*--ntasks-per-node"):
            joint_launch(trainer)


def test_a_sweep_is_started_once(place, dlunet, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    message = dlunet("train", "-m", *TINY, "seed=0,1", "hydra.sweep.dir=many", cwd=place, fails=True).stderr
    assert "-m: found in a process of torchrun" in message and not (place / "many").exists()


def test_self_training_is_started_once(place, dlunet, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    message = dlunet("self_train", *TINY, "trainer.devices=2", "output=both", cwd=place, fails=True).stderr
    assert "self_train: was started several times" in message and not (place / "both").exists()


@pytest.mark.parametrize(
    ("devices", "count"), [(3, 3), ("3", 3), ([0, 2], 2), ("0,2", 2), ("1,", 1), ("auto", 1), (-1, 1)]
)
def test_the_number_of_devices(devices, count, monkeypatch):
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(device_count=lambda: 0))
    assert device_count({"devices": devices}) == count


@pytest.mark.parametrize(
    ("devices", "chosen"), [(2, None), ("auto", None), ("1", None), ("3,1", 3), ([2, 3], 2), (ListConfig([1]), 1)]
)
def test_predictions_after_a_training_use_its_devices(devices, chosen, monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    assert device_to_predict({"accelerator": "cpu", "devices": devices}) == "cpu" and not used
    assert device_to_predict({"accelerator": "auto", "devices": devices}) == "auto"
    assert used == ([] if chosen is None else [chosen])
