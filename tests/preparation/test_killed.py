"""``dlunet prepare``, killed at random moments: what it leaves behind is never taken for a finished case."""

import random
import signal
import time

import pytest


@pytest.fixture(scope="module")
def place(tiny_flare22, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    tiny_flare22(folder / "flare22", labelled=4, unlabelled=16, validation=2)
    return folder


@pytest.fixture
def start(place, start_dlunet):
    """``start(output)`` starts preparing."""
    words = ("prepare", "scale=tiny", "data=flare22", "data.root=flare22")
    return lambda output: start_dlunet(*words, f"data.prepared={output}", cwd=place)


def seconds_of_preparing(process, folder):
    """From the fingerprint, which is the first thing to be written, to the end."""
    while not (folder / "fingerprint.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    begin = time.monotonic()
    assert process.wait(120) == 0
    return time.monotonic() - begin


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/*/[!.]*/case.json")}


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_and_run_again(start, kills, tmp_path):
    whole, output = tmp_path / "whole", tmp_path / "killed"
    seconds = seconds_of_preparing(start(whole), whole)
    expected = contents(whole)
    assert len(finished(whole)) == 22
    moments = random.Random(kills)
    interrupted = 0
    while interrupted < kills:
        process = start(output)
        while not (output / "fingerprint.json").exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(moments.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        interrupted += 1
        before = finished(output)
        if len(before) == 22 or interrupted == kills:
            done = start(output)
            assert done.wait(120) == 0
            after = finished(output)
            assert {path: after[path] for path in before} == before  # nothing is done twice
            deadline = time.monotonic() + 20  # workers of the killed run end once they notice
            while contents(output) != expected and time.monotonic() < deadline:
                time.sleep(0.5)
            assert contents(output) == expected
            for path in sorted(output.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
