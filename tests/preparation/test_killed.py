"""``dlunet prepare`` killed at random moments: a partly written case is never taken for a finished one."""

import random
import time

import pytest

WORDS = ("prepare", "scale=tiny", "data=flare22", "data.root=flare22")
CASES = 14


@pytest.fixture(scope="module")
def place(tiny_flare22, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    tiny_flare22(folder / "flare22", labelled=4, unlabelled=8, validation=2)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def partial_files(folder):
    found = [path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}.*.*.*")]
    return [path for path in found if path.name.split(".")[2].isdigit()]


def finished(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/*/[!.]*/case.json")}


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_and_run_again(place, kills, tmp_path, dlunet, start_dlunet):
    """With worker processes, which may briefly outlive the command."""
    whole, output = tmp_path / "whole", tmp_path / "killed"
    dlunet(*WORDS, f"data.prepared={whole}", cwd=place)
    expected = contents(whole)
    assert len(finished(whole)) == CASES
    moments = random.Random(kills)
    for kill in range(1, kills + 1):
        some = moments.randint(len(finished(output)), CASES - 1)
        with start_dlunet(*WORDS, f"data.prepared={output}", "data.workers=2", cwd=place) as process:
            while not (output / "fingerprint.json").exists() or len(finished(output)) < some:
                assert process.poll() is None, process.communicate()
                time.sleep(0.005)
            moment = time.monotonic() + moments.uniform(0, 0.1)
            while time.monotonic() < moment and (kill % 2 or not partial_files(output)):
                pass
            process.kill()
        before = finished(output)
        if len(before) == CASES or kill == kills:
            dlunet(*WORDS, f"data.prepared={output}", cwd=place)
            after = finished(output)
            assert {path: after[path] for path in before} == before  # finished cases are not prepared again
            deadline = time.monotonic() + 20  # workers of the killed run exit once they notice
            while partial_files(output) and time.monotonic() < deadline:
                time.sleep(0.5)
                dlunet(*WORDS, f"data.prepared={output}", cwd=place)
            assert contents(output) == expected and finished(output) == after
            for path in sorted(output.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
