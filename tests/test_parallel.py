"""Processes that work on cases: how many threads each has, and what they load."""

import os
import subprocess
import sys

from dlunet.parallel import THREADS, for_each_case


def torch_threads(_):
    import torch

    return torch.get_num_threads()


def has_loaded_torch(_):
    return "torch" in sys.modules


def test_each_process_has_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", raising=False)
    before = {name: os.environ.get(name) for name in THREADS}
    assert [number for _, number in for_each_case("counting", torch_threads, [1, 2], workers=2)] == [1, 1]
    assert {name: os.environ.get(name) for name in THREADS} == before


def test_the_command_line_and_scoring_load_neither_torch_nor_pandas():
    """Processes that score cases import both, and would each spend more on it than on a case."""
    code = "import sys, dlunet.cli, dlunet.evaluation.folder; sys.exit(bool({'torch', 'pandas'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_processes_load_only_what_their_work_needs():
    assert dict(for_each_case("looking", has_loaded_torch, [1, 2], workers=2)) == {1: False, 2: False}
