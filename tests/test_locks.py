"""Locks between processes; two lock objects in one process exclude each other like those of two processes."""

import errno
import os
import subprocess
import sys
import threading

import pytest

from dlunet.locks import FileLock

HOLD = "import sys, time; from pathlib import Path; from dlunet.locks import FileLock; " \
       "print(FileLock(Path(sys.argv[1])).take(), flush=True); time.sleep(100)"  # fmt: skip


@pytest.mark.parametrize("remove", [False, True])
def test_one_holds_it_alone(tmp_path, remove):
    path = tmp_path / "folder" / "lock"
    first, second = FileLock(path, remove), FileLock(path, remove)
    assert first.take() and not second.take() and not second.take(alone=False)
    first.release()
    assert second.take() and not FileLock(path, remove).take()
    second.release()
    assert path.exists() is not remove


def test_who_gives_up_waiting_does_not_remove_it(tmp_path):
    path = tmp_path / "lock"
    holder, waiting = FileLock(path, remove=True), FileLock(path, remove=True)
    assert holder.take() and not waiting.take()
    waiting.release()
    assert path.exists() and not FileLock(path, remove=True).take()
    holder.release()
    assert not path.exists()


def test_several_hold_it_together(tmp_path):
    locks = [FileLock(tmp_path / "lock") for _ in range(3)]
    assert all(lock.take(alone=False) for lock in locks[:2])
    assert not locks[2].take()
    locks[0].release()
    assert locks[1].take() and not locks[2].take(alone=False)


def test_it_ends_with_its_process(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        assert not FileLock(tmp_path / "lock").take()
        holder.kill()
        holder.wait()
        assert FileLock(tmp_path / "lock").take()


def test_a_sum_that_threads_add_to(tmp_path):
    """A lock file that is removed and recreated continually still admits one holder at a time: no addition is lost."""
    total = tmp_path / "total"
    total.write_text("0")

    def add():
        for _ in range(50):
            lock = FileLock(tmp_path / "lock", remove=True)
            lock.take(wait=True)
            total.write_text(str(int(total.read_text()) + 1))
            lock.release()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total.read_text() == "200" and os.listdir(tmp_path) == ["total"]


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("dlunet.locks.fcntl.flock", no_locks)
    assert FileLock(tmp_path / "lock").take() and FileLock(tmp_path / "lock").take()
    assert "file locks are not available (No locks available)" in caplog.text
    assert FileLock(tmp_path / "lock" / "below a file").take()
