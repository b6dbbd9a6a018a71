"""Trainings that are killed again and again, that run long, and on a machine that is short of disk or shared memory."""

import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from itertools import islice

import pandas as pd
import psutil
import pytest

from tests.commands import ROOT, TINY
from tests.forked import TIMEOUT
from tests.training.wandb_files import wandb_records

KILLS, EPOCHS, STEPS = 10, 4, 40
LONG = ("train", *TINY, f"trainer.max_epochs={EPOCHS}", f"sampling.steps_per_epoch={STEPS}", "trainer.accelerator=cpu")
#: The file of a checkpoint that is being written.
PARTIAL = "checkpoints/.*"

own_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0,
    reason="needs file systems of its own, so Linux and its administrator",
)


def metrics(run):
    return pd.read_csv(run / "metrics.csv")


def steps_logged(run):
    try:
        return int(metrics(run)["train/loss"].count())
    except (OSError, ValueError, KeyError):
        return 0


def kill_all(process, started):
    """Kill a command and what it has started, as a batch system does."""
    for one in [process, *started]:
        with suppress(psutil.NoSuchProcess):  # it has ended with its parent
            one.kill()


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("method", ["supervised", "cross_pseudo", "mean_teacher"])
def test_a_training_that_is_killed_ten_times_ends_like_one_that_is_not(
    place, method, devices, start_dlunet, dlunet_process
):
    """Every third time while a checkpoint is written, else at a random moment, that of the start included."""
    words = (*LONG, f"method={method}", f"trainer.devices={devices}", "checkpoint.every_n_steps=3", "resume=auto")
    words += ("network.features=[32,64,128]",)  # a checkpoint that takes a moment to write
    dlunet_process(*words, f"output={method}-{devices}-whole", cwd=place)
    run, draws, partial = place / f"{method}-{devices}", random.Random(f"{method} {devices}"), 0
    for number in range(KILLS):
        with start_dlunet(*words, f"output={run.name}", "logger=wandb", cwd=place) as process:
            if number == 0:
                time.sleep(draws.uniform(0, 5))
            else:
                least = steps_logged(run) + draws.randrange(1, EPOCHS * STEPS // KILLS)
                wait_for(lambda least=least: steps_logged(run) >= least, process)
                time.sleep(draws.uniform(0, 0.1))
            started = psutil.Process(process.pid).children(recursive=True)
            if number % 3 == 1:
                wait_for(lambda: any(run.glob(PARTIAL)), process)
            kill_all(process, started if number % 2 else [])  # or the first one alone: the others then end, too
            process.communicate(timeout=TIMEOUT)
            assert not psutil.wait_procs(started, timeout=TIMEOUT)[1]
        partial += any(run.glob(PARTIAL))
    assert partial  # some were killed while they wrote
    dlunet_process(*words, f"output={run.name}", "logger=wandb", cwd=place)
    expected, found = metrics(place / f"{method}-{devices}-whole"), metrics(run)
    losses = [name for name in expected if name.startswith("train/")]
    of_steps = [
        table.dropna(subset="train/loss").reset_index()[["epoch", "step", *losses]] for table in (expected, found)
    ]
    assert of_steps[0]["step"].tolist() == list(range(EPOCHS * STEPS))
    pd.testing.assert_frame_equal(of_steps[1], of_steps[0], rtol=0, atol=1e-6)
    files = run.glob("wandb/offline-run-*/*.wandb")
    firsts = [islice((record for record in wandb_records(file) if record.HasField("run")), 1) for file in files]
    assert {record.run.run_id for first in firsts for record in first} == {(run / "wandb_id.txt").read_text()}
    assert not any(run.glob(PARTIAL))


@pytest.mark.slow
def test_what_a_process_holds_does_not_grow(place, start_dlunet):
    """Memory, open files and threads at the end of 300 epochs are those of the 30th."""
    epochs, held = 300, {}
    words = ("train", *TINY, "experiment=ssl_light", "output=held", f"trainer.max_epochs={epochs}")
    with start_dlunet(*words, "sampling.steps_per_epoch=2", cwd=place) as process:
        known = psutil.Process(process.pid)
        while process.poll() is None:
            epoch = steps_logged(place / "held") // 2
            with known.oneshot():
                if epoch and known.status() != psutil.STATUS_ZOMBIE:
                    now = (known.memory_info().rss, known.num_fds(), known.num_threads())
                    held.setdefault(epoch, []).append(now)
            time.sleep(0.2)
        assert process.returncode == 0, process.communicate()
    early, late = (
        [[now[k] for epoch, times in held.items() if low <= epoch < low + 10 for now in times] for k in range(3)]
        for low in (30, epochs - 10)
    )
    # The fewest files: a batch on its way from the reader of patches is a file for each of its tensors.
    of_each = (statistics.median, min, statistics.median)
    memory, files, threads = zip(
        *([take(values) for take, values in zip(of_each, times, strict=True)] for times in (early, late)), strict=True
    )
    print(f"MiB: {memory[0] / 2**20:.1f}, {memory[1] / 2**20:.1f}; files: {files}; threads: {threads}")
    assert memory[1] <= 1.05 * memory[0]
    assert files[0] == files[1] and threads[0] == threads[1]


def with_mount(folder, size, script, *words, cwd):
    """Run a shell script whose ``"$@"`` is a command, with a file system of some size mounted at a folder."""
    command = [sys.executable, "-m", "dlunet", *words]
    mount = f'mount -t tmpfs -o size={size} tmpfs "$0" && {script}'
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, str(folder), *command],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done


@own_mounts
@pytest.mark.slow
def test_a_disk_that_is_full_stops_a_training_which_is_resumed_when_there_is_space(place, dlunet_process):
    words = ("train", *TINY, "experiment=sup_light", "trainer.max_epochs=4")
    dlunet_process(*words, "output=large", cwd=place)
    (place / "small").mkdir()
    size = sum(path.stat().st_size for path in (place / "large" / "checkpoints").glob("last.ckpt")) * 5 // 2
    done = with_mount(
        place / "small", size,
        '{ "$@"; echo "ended with $?"; mount -o remount,size=1g "$0"; "$@" && cp "$0/metrics.csv" resumed.csv; }',
        *words, "output=small", "resume=auto", cwd=place,
    )  # fmt: skip
    assert "ended with 1" in done.stdout and done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("No space left on device") == 1
    losses = [
        pd.read_csv(place / name)["train/loss"].dropna().tolist() for name in ("large/metrics.csv", "resumed.csv")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 16


@own_mounts
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_little_shared_memory(place, workers):
    """A MiB is enough for small patches only."""
    words = ("train", *TINY, "experiment=ssl_light", f"output=shm-{workers}", f"sampling.num_workers={workers}")
    large = ("plan.patch_size=[32,64,64]", "trainer.max_epochs=1", "sampling.steps_per_epoch=2")
    done = with_mount("/dev/shm", "1m", '"$@"', *words, *large, cwd=place)
    assert done.returncode == workers, done.stdout + done.stderr
    if workers:
        assert "/dev/shm" in done.stderr and "sampling.num_workers=0" in done.stderr
