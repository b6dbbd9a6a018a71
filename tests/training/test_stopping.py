"""Trainings that are stopped or killed within an epoch end like those that are not."""

import os
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from dlunet.cli import main
from dlunet.errors import WriteError
from dlunet.files import save_tensors
from dlunet.training.checkpoint import WholeCheckpointIO
from dlunet.training.module import SegmentationModule
from dlunet.training.run_folder import RunFolder
from tests.commands import TINY
from tests.forked import TIMEOUT, exit_code_of

STEPS = 40
LONG = ("train", *TINY, "trainer.max_epochs=2", f"sampling.steps_per_epoch={STEPS}", "trainer.log_every_n_steps=1")
#: Seconds that a step of these trainings takes at most, and those after it within which the command ends.
STEP, AFTER = 5, 10
#: Signals that are tried besides SIGTERM.
FURTHER = (signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="module")
def whole(place, dlunet_process):
    """``whole(method)``: the run of a method that is not stopped."""
    known = {}

    def run(method):
        if method not in known:
            known[method] = place / f"{method}-whole"
            dlunet_process(*LONG, f"method={method}", f"output={method}-whole", cwd=place)
        return known[method]

    return run


def metrics(run):
    return pd.read_csv(run / "metrics.csv").drop(columns="epoch", errors="ignore")


def check_same_end(run, whole):
    expected, found = (metrics(folder) for folder in (whole, run))
    of_steps = expected[expected["train/loss"].notna()]
    assert of_steps["step"].tolist() == list(range(2 * STEPS))  # no gap, no double
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, run)]
    for state in states:
        del state["lr_schedulers"][0]["_step_count"]  # the number of its calls, one more in a run that was resumed
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        before, after = (torch.utils._pytree.tree_leaves(state[part]) for state in states)
        for a, b in zip(before, after, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def begun(run, steps):
    """Whether a run has logged some steps."""
    try:
        return len(pd.read_csv(run / "metrics.csv")) >= steps
    except (OSError, ValueError):
        return False


def wait_until_begun(run, process):
    while not begun(run, 5):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("method", ["supervised", pytest.param("mean_teacher", marks=pytest.mark.slow)])
def test_a_signal_ends_a_training_after_a_step_with_a_checkpoint(place, method, whole, start_dlunet, dlunet_process):
    run, words = place / f"{method}-stopped", (*LONG, f"method={method}", f"output={method}-stopped")
    with start_dlunet(*words, cwd=place) as process:
        wait_until_begun(run, process)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        printed = "".join(process.communicate(timeout=TIMEOUT))
        assert time.monotonic() - begin < STEP + AFTER
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in printed, printed
    done = RunFolder(run).done()
    assert done.epochs == 0 and 0 < done.steps < STEPS
    assert f"{done.steps} finished steps are kept; add resume=auto" in printed
    dlunet_process(*words, "resume=auto", cwd=place)
    check_same_end(run, whole(method))


def test_a_training_that_is_killed_goes_on_from_the_last_checkpoint(place, whole, start_dlunet, dlunet_process):
    """Twice, once in each epoch, the second time with a last checkpoint that was damaged."""
    run = RunFolder(place / "killed")
    words = (*LONG, "method=supervised", "output=killed", "checkpoint.every_n_steps=7", "resume=auto")
    for least in (7, STEPS + 14):
        with start_dlunet(*words, cwd=place) as process:
            while not (run.last.exists() and run.done().steps >= least):
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.kill()
        assert run.done().steps % 7 == 0
    run.last.write_bytes(run.last.read_bytes()[:1000])
    printed = dlunet_process(*words, cwd=place).all
    assert "continuing from the one before" in printed
    check_same_end(run.path, whole("supervised"))


@pytest.mark.parametrize("number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in FURTHER)])
def test_a_signal_to_all_processes_lets_the_reader_of_patches_go_on(place, number, whole, start_dlunet, dlunet_process):
    """As Ctrl-C and SLURM send it: the step and its checkpoint are finished though the reader gets the signal first."""
    run = place / f"to-all-{number}"
    words = (*LONG, "method=supervised", "sampling.num_workers=1", f"output={run.name}")
    with start_dlunet(*words, cwd=place) as process:
        wait_until_begun(run, process)
        readers = psutil.Process(process.pid).children()
        for one in (*readers, process):
            one.send_signal(number)
        printed = "".join(process.communicate(timeout=TIMEOUT))
    assert process.returncode == 128 + number and "Traceback" not in printed, printed
    assert readers and not psutil.wait_procs(readers, timeout=AFTER)[1]
    assert 0 < RunFolder(run).done().steps < STEPS
    dlunet_process(*words, "resume=auto", cwd=place)
    check_same_end(run, whole("supervised"))


def train_until_a_checkpoint_is_written(run, words):
    """Train, and end at once when the first checkpoint is written, whose step is not logged yet."""
    os.chdir(run.path.parent)
    SegmentationModule.on_train_batch_end = lambda *_: os._exit(7) if any(run.checkpoints.glob("[!.]*")) else None
    sys.argv[1:] = words
    main()


def test_a_checkpoint_counts_when_its_step_is_logged(place, whole, dlunet_process):
    """A training that is killed between the two repeats the step instead of leaving it out of metrics.csv."""
    words = [*LONG, "method=supervised", "output=unlogged", "checkpoint.every_n_steps=7", "resume=auto"]
    run = RunFolder(place / "unlogged")
    assert exit_code_of(train_until_a_checkpoint_is_written, run, words) == 7
    assert run.done().steps == 0 and metrics(run.path)["train/loss"].count() == 6
    dlunet_process(*words, cwd=place)
    check_same_end(run.path, whole("supervised"))


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_of_two_processes_ends_after_a_step(place, number, to_all, start_dlunet, dlunet_process):
    words = (*LONG, "method=supervised", "trainer.devices=2", "trainer.accelerator=cpu")
    dlunet_process(*words, "output=two-whole", "resume=auto", cwd=place)
    run = place / f"two-{number}-{to_all}"
    with start_dlunet(*words, f"output={run.name}", cwd=place) as process:
        wait_until_begun(run, process)
        for one in (*(psutil.Process(process.pid).children() if to_all else ()), process):
            one.send_signal(number)
        printed = "".join(process.communicate(timeout=TIMEOUT))
    assert process.returncode == 128 + number and "Traceback" not in printed, printed
    assert 0 < RunFolder(run).done().steps < STEPS
    dlunet_process(*words, f"output={run.name}", "resume=auto", cwd=place)
    check_same_end(run, place / "two-whole")


@pytest.mark.slow
def test_a_signal_that_only_the_second_of_two_processes_gets_ends_both(place, start_dlunet):
    """And the command's exit code says which one it was, on which it depends whether a job is requeued."""
    run = place / "second"
    words = (*LONG, "method=supervised", "trainer.devices=2", "trainer.accelerator=cpu", f"output={run.name}")
    with start_dlunet(*words, cwd=place) as process:
        wait_until_begun(run, process)
        trained = [child for child in psutil.Process(process.pid).children() if "spawn_main" in str(child.cmdline())]
        max(trained, key=psutil.Process.create_time).send_signal(signal.SIGUSR1)
        printed = "".join(process.communicate(timeout=TIMEOUT))
    assert len(trained) == 2 and process.returncode == 128 + signal.SIGUSR1 and "Traceback" not in printed, printed
    assert 0 < RunFolder(run).done().steps < STEPS


def test_a_full_disk_stops_or_does_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "dlunet.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(WriteError, match="No space left"):
        WholeCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    WholeCheckpointIO("continue").save_checkpoint({}, tmp_path / "last.ckpt")
    assert "No space left" in caplog.text and "training goes on" in caplog.text
    assert os.listdir(tmp_path) == []


def test_a_training_whose_end_could_not_be_written_fails_and_can_be_resumed(place, whole, dlunet, monkeypatch):
    """There is no room from the second epoch on, and the training is to go on."""
    words = (*LONG, "method=supervised", "output=no-room", "checkpoint.on_full=continue")

    def written(checkpoint, path):
        if checkpoint["epoch"] == 1:
            raise WriteError.of(path, "No space left on device")
        save_tensors(checkpoint, path)

    with monkeypatch.context() as full:
        full.setattr("dlunet.training.checkpoint.save_tensors", written)
        printed = dlunet(*words, cwd=place, fails=True).stderr
    run = RunFolder(place / "no-room")
    assert f"{Path('no-room', 'checkpoints', 'last.ckpt')}: the end of the training could not be written" in printed
    assert "resume=auto" in printed and run.done().epochs == 1
    dlunet(*words, "resume=auto", cwd=place)
    check_same_end(run.path, whole("supervised"))
