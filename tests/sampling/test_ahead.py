"""Batches made ahead: in order, no more than allowed, errors passed on, and no process left."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing import resource_sharer
from multiprocessing.connection import Client

import psutil
import pytest
import SimpleITK
import torch

from dlunet.errors import UserError
from dlunet.sampling.ahead import Ahead
from dlunet.sampling.workers import PREFETCHED

STEPS = 5


def names(epoch, steps):
    yield from ({"name": torch.tensor([epoch, step]), "process": os.getpid()} for step in steps)


@pytest.fixture
def ahead():
    """``ahead(make, workers)``; ended after the test."""
    made = []

    def make(batches, workers, steps=STEPS):
        made.append(Ahead(batches, steps, workers))
        return made[-1]

    yield make
    for each in made:
        each.close()


def workers_running():
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 7])
def test_every_step_of_every_epoch_in_order(ahead, workers):
    """Whether the number of workers divides that of the steps or not; also with more workers than steps."""
    batches = ahead(names, workers)
    for epoch in (3, 4, 5):
        found = list(batches.epoch(epoch))
        assert [batch["name"].tolist() for batch in found] == [[epoch, step] for step in range(STEPS)]
        assert len(batches.epoch(epoch)) == STEPS
    assert (os.getpid() in {batch["process"] for batch in found}) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_another_epoch_after_one_that_was_left_early(ahead, workers):
    batches = ahead(names, workers)
    next(iter(batches.epoch(0)))
    for epoch in (1, 1, 0):
        assert [batch["name"].tolist() for batch in batches.epoch(epoch)] == [[epoch, step] for step in range(STEPS)]


def test_the_workers_live_as_long_as_the_run(ahead):
    batches = ahead(names, 2)
    processes = [{batch["process"] for batch in batches.epoch(epoch)} for epoch in range(3)]
    running = {worker.pid for worker in workers_running()}
    assert processes[0] == processes[1] == processes[2] <= running and len(processes[0]) == 2
    batches.close()
    assert processes[0].isdisjoint(worker.pid for worker in workers_running())


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_batches_are_ready_than_allowed(ahead, workers):
    begun = multiprocessing.get_context("fork").Value("i", 0)

    def count(epoch, steps):
        for step in steps:
            with begun.get_lock():
                begun.value += 1
            yield {"step": step}

    batches = iter(ahead(count, workers, steps=1000).epoch(0))
    for taken in range(1, 4):
        next(batches)
        deadline = time.monotonic() + 20
        while begun.value < taken + PREFETCHED * workers and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert begun.value == taken + PREFETCHED * workers


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_errors_reach_the_step_that_needs_the_batch(ahead, workers):
    def fail(error):
        def make(epoch, steps):
            for batch, step in zip(names(epoch, steps), steps, strict=True):
                if step == 2:
                    raise error
                yield batch

        batches = iter(ahead(make, workers).epoch(0))
        assert [next(batches)["name"].tolist() for _ in range(2)] == [[0, 0], [0, 1]]
        next(batches)

    with pytest.raises(UserError, match=r"^image\.npy: is damaged$"):
        fail(UserError("image.npy: is damaged"))
    with pytest.raises(ZeroDivisionError, match="by nothing"):
        fail(ZeroDivisionError("by nothing"))


def test_a_killed_worker_ends_the_run(ahead):
    """By the message that training explains to the user."""
    batches = iter(ahead(names, 1, steps=1000).epoch(0))
    os.kill(int(next(batches)["process"]), signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_random_numbers_of_this_process_stay_as_they_are(ahead, workers):
    before = torch.random.get_rng_state()
    list(ahead(names, workers).epoch(0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_worker_computes_in_one_thread(ahead):
    def threads(epoch, steps):
        yield from ((torch.get_num_threads(), SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()) for _ in steps)

    assert set(ahead(threads, 1).epoch(0)) == {(1, 1)}


def test_a_worker_ends_at_once_with_a_parent_that_is_killed():
    """It has copies of the parent's locks: a run that resumes must not wait for them."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        batches = Ahead(names, STEPS, 1)
        os.write(write, str(next(iter(batches.epoch(0)))["process"]).encode())
        time.sleep(60)
        os._exit(0)
    worker = psutil.Process(int(os.read(read, 20)))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    worker.wait(2)


def hang_up(address):
    """As a run that is stopped while it receives a tensor."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)


def ask_for_an_unknown_tensor(address):
    with Client(address, authkey=multiprocessing.current_process().authkey) as connection:
        connection.send((-1, os.getpid()))


@pytest.mark.parametrize(("connect", "reported"), [(hang_up, False), (ask_for_an_unknown_tensor, True)])
def test_only_a_run_that_hangs_up_on_a_worker_is_no_error(ahead, tmp_path, connect, reported):
    printed = tmp_path / "stderr"

    def with_address(epoch, steps):
        sys.stderr = printed.open("a", buffering=1)
        address, _ = resource_sharer.DupFd(sys.stderr.fileno())._id
        yield from ({**batch, "address": address} for batch in names(epoch, steps))

    batches = iter(ahead(with_address, 1, steps=20).epoch(0))
    connect(next(batches)["address"])
    assert len(list(batches)) == 19  # later tensors: the thread that sends them has dealt with the connection
    assert ("Traceback" in printed.read_text()) == reported
