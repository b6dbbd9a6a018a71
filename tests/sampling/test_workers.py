"""System requirements of worker processes that read patches."""

import math
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from dlunet.errors import UserError
from dlunet.parallel import check_shared_memory, for_each_case
from dlunet.sampling import check_workers, worker_count

PATCH = (56, 160, 160)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """``free(size)`` sets the free shared memory, in bytes."""
    return lambda size: monkeypatch.setattr("dlunet.parallel.shutil.disk_usage", lambda _: Usage(size, 0, size))


def test_docker_s_default_is_too_little_for_the_paper_s_patches(free):
    free(64 * 2**20)
    message = r"^/dev/shm: 64 MiB .* is free; sampling\.num_workers=4 needs up to \d+ MiB; .*--shm-size.*num_workers=0$"
    with pytest.raises(UserError, match=message):
        check_workers(4, 1, PATCH, images=4)
    check_workers(0, 1, PATCH, images=4)
    check_workers(4, 1, (16, 32, 32), images=4)


def test_what_is_needed_is_what_may_be_on_its_way(free):
    """Four float32 tensors per step, nine patches of each: two for each of four processes, and one batch."""
    needed = 4 * 9 * 4 * math.prod(PATCH) + 2**18
    free(needed)
    check_workers(4, 1, PATCH, images=4)
    free(needed - 1)
    with pytest.raises(UserError):
        check_workers(4, 1, PATCH, images=4)


def test_larger_batches_need_more(free):
    free(4 * 2 * 3 * 4 * math.prod(PATCH) + 2**18 - 1)
    check_workers(1, 1, PATCH, images=4)
    with pytest.raises(UserError):
        check_workers(1, 2, PATCH, images=4)


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (7, 1), (8, 2), (16, 4), (96, 4)])
def test_workers_unless_set_leave_the_step_its_cores(monkeypatch, cores, expected):
    monkeypatch.setattr("dlunet.sampling.workers.available_cores", lambda: cores)
    monkeypatch.setattr("dlunet.sampling.workers.sys.platform", "linux")
    assert worker_count(None) == expected
    assert [worker_count(number) for number in (0, 1, 12)] == [0, 1, 12]
    assert worker_count(None, processes=2) == max(1, min(cores // 8, 4))
    assert worker_count(3, processes=2) == 3
    monkeypatch.setattr("dlunet.sampling.workers.sys.platform", "darwin")
    assert worker_count(None) == 0


def test_processes_that_prepare_need_some_too(free):
    free(2**16)
    with pytest.raises(UserError, match=r"64 KiB .* is free; reading in 2 processes needs .*data\.workers=1"):
        list(for_each_case("reading", len, ["a", "b"], workers=2))
    assert dict(for_each_case("reading", len, ["a", "bc"], workers=1)) == {"a": 1, "bc": 2}


def test_a_system_without_it(monkeypatch, tmp_path):
    monkeypatch.setattr("dlunet.parallel.SHARED_MEMORY", tmp_path / "gone")
    check_shared_memory(2**60, "anything", "nothing")


@pytest.mark.parametrize(("length", "fits"), [(75, True), (76, False)])
def test_a_folder_for_sockets(monkeypatch, length, fits):
    folder = "/" + "x" * (length - 1)
    monkeypatch.setattr("dlunet.sampling.workers.tempfile.gettempdir", lambda: folder)
    if fits:
        check_workers(1, 1, (8, 8, 8), images=1)
    else:
        with pytest.raises(UserError, match=f"^TMPDIR={folder}: the name has 76 bytes; .*TMPDIR=/tmp"):
            check_workers(1, 1, (8, 8, 8), images=1)


@pytest.mark.parametrize(("length", "code"), [(75, 0), (76, 1)])
def test_the_longest_folder_for_sockets_is_python_s(length, code):
    """Processes exchange tensors through a socket in a subfolder that Python creates there."""
    script = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from multiprocessing.connection import Listener\n"
        "Listener(family='AF_UNIX').close()"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        folder = Path(parent) / ("x" * (length - len(parent) - 1))
        folder.mkdir()
        done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code and ("path too long" in done.stderr) == bool(code), done.stderr
