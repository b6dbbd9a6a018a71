"""What a command does when a signal says that the time of its SLURM job is nearly over; ``scontrol`` is a stand-in."""

import os
import signal
import sys

import pytest

from dlunet import cli
from dlunet.requeue import requeue
from dlunet.signals import Stopped, StopRequest
from tests.commands import as_a_new_process
from tests.forked import exit_code_of


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """``scontrol(code)`` makes the stand-in end with an exit code; returns the file with its arguments."""
    called = tmp_path / "called.txt"

    def make(code=0):
        program = tmp_path / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$@" >> {called}\necho "Invalid job id specified" >&2\nexit {code}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return called

    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return make


def stop_by(number, verb, arguments, monkeypatch, capfd):
    """Run a command whose work a signal stops; returns its exit code and what it printed."""

    def stopped(config):
        raise Stopped(number)

    monkeypatch.setitem(cli.VERBS, verb, stopped)
    monkeypatch.setattr(sys, "argv", ["dlunet"])
    with pytest.raises(SystemExit) as ended:
        cli.run_verb(verb, arguments)
    return ended.value.code, capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_job_whose_time_is_over_is_requeued(scontrol, number, monkeypatch, capfd, tmp_path):
    called = scontrol()
    words = ["resume=auto", f"output={tmp_path / 'run'}", "data=flare22", "data.root=FLARE22"]
    code, printed = stop_by(number, "train", words, monkeypatch, capfd)
    assert called.read_text() == "requeue 17\n"
    assert code == 128 + number and "job 17 is requeued" in printed


def be_stopped(config):
    os.kill(os.getpid(), signal.SIGUSR1)


def be_stopped_after_a_step(config):
    request = StopRequest()
    with request.noting():
        be_stopped(config)
    request.obey()


def run_beside(folder, command):
    """Run a command, with the stand-in in a folder."""
    os.environ |= {"SLURM_JOB_ID": "17", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    cli.VERBS["prepare"] = command
    cli.run_verb("prepare", ["data=flare22", "data.root=FLARE22"])


@pytest.mark.parametrize("command", [be_stopped, be_stopped_after_a_step])
def test_a_further_signal_does_not_end_the_requeueing(tmp_path, command):
    """The stand-in sends SIGTERM while it is at work, as SLURM does when it requeues a job."""
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\nkill -TERM $PPID\nsleep 0.2\necho "$@" > {tmp_path}/called.txt\n')
    program.chmod(0o755)
    assert exit_code_of(run_beside, tmp_path, command) == 128 + signal.SIGUSR1
    assert (tmp_path / "called.txt").read_text() == "requeue 17\n"


def test_a_sweep_whose_config_resumes_its_runs_is_requeued(scontrol, monkeypatch, capfd, tmp_path):
    called = scontrol()
    words = ["-m", "+sweep=table3", "data=flare22", "data.root=FLARE22", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    with as_a_new_process():
        _, printed = stop_by(signal.SIGUSR1, "train", words, monkeypatch, capfd)
        assert "job 17 is requeued" in printed and called.read_text() == "requeue 17\n"
        _, printed = stop_by(signal.SIGUSR1, "train", [*words, "resume=null"], monkeypatch, capfd)
    assert "add resume=auto to resume" in printed and called.read_text() == "requeue 17\n"


def test_a_task_of_an_array(scontrol, monkeypatch):
    called = scontrol()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert requeue(signal.SIGUSR1) == "job 15_2 is requeued" and called.read_text() == "requeue 15_2\n"


@pytest.mark.parametrize(
    ("number", "variables"),
    [
        (signal.SIGTERM, {}),  # the job is cancelled, or requeued by SLURM
        (signal.SIGINT, {}),
        (signal.SIGUSR1, {"SLURM_PROCID": "1"}),  # another task of the job requeues it
    ],
)
def test_a_job_is_not_requeued(scontrol, monkeypatch, number, variables):
    called = scontrol()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert requeue(number) is None and not called.exists()


def test_without_slurm_nothing_is_requeued(scontrol, monkeypatch):
    called = scontrol()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert requeue(signal.SIGUSR1) is None and not called.exists()


def test_a_training_that_would_not_resume_is_not_requeued(scontrol, monkeypatch, capfd):
    """It would find its run folder in use, again and again."""
    called = scontrol()
    words = ["output=run", "data=flare22", "data.root=FLARE22"]
    _, printed = stop_by(signal.SIGUSR1, "train", words, monkeypatch, capfd)
    assert "add resume=auto to resume" in printed and not called.exists()


def test_why_a_job_is_not_requeued_is_said(scontrol, monkeypatch, capfd):
    scontrol(1)
    words = ["data=flare22", "data.root=FLARE22"]
    _, printed = stop_by(signal.SIGUSR1, "prepare", words, monkeypatch, capfd)
    assert "job 17 could not be requeued (scontrol: Invalid job id specified); rerun the command to resume" in printed


def test_a_machine_without_scontrol(scontrol, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = requeue(signal.SIGUSR1)
    assert "job 17 could not be requeued (scontrol: " in message and "No such file" in message
