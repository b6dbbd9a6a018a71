"""A signal ends a command and its child processes, with the exit code of the signal."""

import multiprocessing
import multiprocessing.popen_spawn_posix
import multiprocessing.resource_tracker
import os
import pkgutil
import shutil
import signal
import subprocess
import threading
import time

import psutil
import pytest

from dlunet.parallel import end_processes
from dlunet.signals import ASKING, Stopped, StopRequest, ignore_further, signals_raise


@pytest.fixture(autouse=True)
def none_is_ignored():
    """Restore default handlers: background jobs of a shell start with SIGINT ignored, those of nohup with SIGHUP."""
    ignored = [number for number in ASKING if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_raises_and_its_handler_is_restored(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, signals_raise():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert stopped.value.exit_code == 128 + number and stopped.value.name == signal.Signals(number).name
    assert signal.getsignal(number) == before


def test_a_signal_that_comes_where_exceptions_are_ignored(capfd):
    class Odd:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with pytest.raises(Stopped), signals_raise():
        odd = Odd()
        del odd
        time.sleep(5)
    assert "ignored" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("method", "start"), [("fork", "os.fork"), ("spawn", "multiprocessing.popen_spawn_posix.util.spawnv_passfds")]
)
def test_a_process_that_is_being_started_meanwhile_ends_too(monkeypatch, method, start):
    """The signal arrives before multiprocessing has registered the process; other child programs keep running."""
    begin, born = pkgutil.resolve_name(start), []
    multiprocessing.resource_tracker.ensure_running()

    def interrupted(*arguments):
        pid = begin(*arguments)
        if pid:
            born.append(psutil.Process(pid))
            os.kill(os.getpid(), signal.SIGTERM)
        return pid

    with subprocess.Popen(["sleep", "60"]) as program:
        with monkeypatch.context() as patch, pytest.raises(Stopped), signals_raise():
            patch.setattr(start, interrupted)
            multiprocessing.get_context(method).Process(target=time.sleep, args=(60,)).start()
        assert born[0].is_running() and not multiprocessing.active_children()
        end_processes()
        assert not born[0].is_running()
        assert program.poll() is None
        program.kill()


def test_a_request_notes_the_first_signal_and_the_second_one_acts_as_before(monkeypatch):
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    request = StopRequest()
    with pytest.raises(Stopped) as stopped, signals_raise(), request.noting():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert request.number == signal.SIGINT
        with pytest.raises(Stopped) as obeyed:
            request.obey()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert (obeyed.value.number, stopped.value.number) == (signal.SIGINT, signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest().noting():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("started_by", "first", "passed_on"),
    [
        ("TORCHELASTIC_RUN_ID", signal.SIGTERM, signal.SIGTERM),
        ("TORCHELASTIC_RUN_ID", signal.SIGINT, signal.SIGINT),
        ("SLURM_JOB_ID", signal.SIGUSR1, signal.SIGTERM),
    ],
)
def test_a_signal_that_torchrun_or_slurm_passes_on_does_not_stop_at_once(monkeypatch, started_by, first, passed_on):
    monkeypatch.setenv(started_by, "1")
    request = StopRequest()
    with signals_raise(), request.noting():
        for number in (first, passed_on, passed_on):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        assert request.number == first
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGXCPU)
            time.sleep(5)


def test_a_forked_process_ends_though_a_request_notes_signals():
    """Such as one that reads patches."""
    with StopRequest().noting():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_raise():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_while_a_process_shuts_down_an_ignored_signal_stays_ignored_and_others_are():
    """All handlers are as before afterwards."""
    before = {number: signal.getsignal(number) for number in ASKING}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals_raise():
        ignore_further()
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in ASKING)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signal.signal(signal.SIGINT, before[signal.SIGINT])
    assert {number: signal.getsignal(number) for number in ASKING} == before


def test_a_forked_process_ends_as_by_default():
    read, write = os.pipe()
    with signals_raise():
        child = os.fork()
        if child == 0:
            os.write(write, b"ready")
            time.sleep(60)
            os._exit(0)
        os.read(read, 5)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@pytest.fixture(scope="module")
def place(tiny_flare22, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    tiny_flare22(folder / "flare22", labelled=6, unlabelled=10)
    return folder


TINY = ("scale=tiny", "data=flare22", "data.root=flare22", "logger=csv", "data.workers=1")


def stop(process, ready, number):
    """Send a signal once ``ready()``; returns the output and those child processes that are still running."""
    while not ready():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    printed = "".join(process.communicate(timeout=60))
    _, alive = psutil.wait_procs(workers, timeout=20)
    return printed, alive


def test_self_training_that_is_stopped_says_so_and_goes_on(place, start_dlunet, dlunet_process):
    """The teacher's first epoch is kept; rerun, the command trains the second epoch and then the student."""
    settings = ("output=chain", "trainer.max_epochs=2", "sampling.steps_per_epoch=15", "sampling.num_workers=1")
    teacher = place / "chain" / "teacher"
    process = start_dlunet("self_train", *TINY, *settings, cwd=place)
    printed, alive = stop(process, (teacher / "checkpoints" / "last.ckpt").exists, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert "finished steps are kept" in printed and "stopped by SIGTERM" in printed
    assert "Traceback" not in printed and not alive
    dlunet_process("self_train", *TINY, *settings, cwd=place)
    assert (place / "chain" / "student" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_processes_that_prepare_end_with_the_command(place, number, start_dlunet):
    shutil.rmtree(place / "prepared", ignore_errors=True)
    process = start_dlunet("prepare", *TINY, "data.prepared=prepared", "data.workers=2", cwd=place)
    printed, alive = stop(process, lambda: list(place.glob("prepared/*/*/*/case.json")), number)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), printed
    assert not alive


@pytest.mark.slow
@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2)])
def test_a_training_of_several_processes_ends_with_all_of_them(place, number, times, start_dlunet):
    """The signal reaches only one process, as from a batch system; a second Ctrl-C does not wait for the others."""
    shutil.rmtree(place / "two", ignore_errors=True)
    settings = ("output=two", "experiment=sup_light", "trainer.devices=2", "trainer.max_epochs=1000")
    process = start_dlunet("train", *TINY, *settings, cwd=place)
    ready = (place / "two" / "checkpoints" / "last.ckpt").exists
    if times == 2:
        threading.Thread(target=_ask_again, args=(process, ready)).start()
    printed, alive = stop(process, ready, number)
    assert process.returncode == 128 + number, printed
    assert "Traceback" not in printed and not alive


def _ask_again(process, ready):
    while not ready():
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
