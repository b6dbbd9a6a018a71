"""Fixtures that run commands, in the test process (no repeated import of PyTorch) or in a new one."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig

from dlunet import cli
from tests.forked import TIMEOUT, ForkedCommand

ROOT = Path(__file__).parents[1]

#: Settings of a short training on the dataset in ``place``.
TINY = ("scale=tiny", "data=flare22", "data.root=flare22", "data.prepared=prepared", "logger=csv", "data.workers=1")


@dataclass(frozen=True)
class Output:
    """The output of a command."""

    stdout: str
    stderr: str

    @property
    def all(self) -> str:
        return self.stdout + self.stderr


def checked(code: int, stdout: str, stderr: str, fails: bool) -> Output:
    """The output of a command, after checking its exit code and that it printed no traceback."""
    output = Output(stdout, stderr)
    assert code == int(fails), output.all
    assert "Traceback" not in output.all and "Error executing job" not in output.all, output.all
    return output


@pytest.fixture(scope="module")
def place(tiny_flare22, tmp_path_factory) -> Path:
    """A working folder of a test module with a dataset, prepared by the first run."""
    folder = tmp_path_factory.mktemp("place")
    tiny_flare22(folder / "flare22")
    return folder


@pytest.fixture
def dlunet(capfd):
    """``dlunet(verb, …, cwd=FOLDER, fails=False)`` runs a command in this process and returns its :class:`Output`.

    With ``fails`` it must end with exit code 1. Not for plug-ins, which stay imported, or for Weights & Biases, which
    leaves a process behind.
    """

    def run(*words: str, cwd: Path, fails: bool = False) -> Output:
        capfd.readouterr()  # discards earlier output
        with as_a_new_process(), chdir(cwd), patch.object(sys, "argv", ["dlunet", *words]):
            try:
                cli.main()
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
        return checked(code, *capfd.readouterr(), fails)

    return run


@contextmanager
def as_a_new_process() -> Iterator[None]:
    """Undo the block's changes to the process; only one core is available in it, so no worker processes by default.

    Hydra composes a config twice, at first only to see whether it sets ``hydra.mode``; here it is told that none does.
    """
    loggers = [logging.root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            patch.dict(os.environ),
            patch.object(sys, "path", sys.path[:]),
            patch("dlunet.parallel.available_cores", return_value=1),
            patch.object(Hydra, "get_mode", return_value=None),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        HydraConfig.instance().cfg = None  # left by a sweep
        logging.captureWarnings(False)
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def start_dlunet():
    """``start_dlunet(verb, …, cwd=FOLDER, NAME=value)`` starts a command in a new process with environment variables;
    ``start_dlunet("train.py", …)`` starts ``python train.py``. Only one core counts in it, so that it starts
    no processes for cases by default. With ``fresh``, it has all cores and does all imports itself: for what happens in
    them, and for libraries that start processes in ways of their own."""

    def start(*words: str, cwd: Path, fresh: bool = False, **environment: str) -> subprocess.Popen | ForkedCommand:
        environment = {"OMP_NUM_THREADS": "1", **environment}
        own = words[0].endswith(".py")
        if not fresh:
            program, words = (str(ROOT / words[0]), words[1:]) if own else ("dlunet", words)
            return ForkedCommand(program, words, cwd, environment)
        program = [str(ROOT / words[0])] if own else ["-m", "dlunet", words[0]]
        return subprocess.Popen(
            [sys.executable, *program, *words[1:]],
            cwd=cwd,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    return start


@pytest.fixture(scope="session")
def dlunet_process(start_dlunet):
    """Like ``dlunet``, but in a new process, with the arguments of ``start_dlunet``."""

    def run(*words: str, cwd: Path, fails: bool = False, fresh: bool = False, **environment: str) -> Output:
        with start_dlunet(*words, cwd=cwd, fresh=fresh, **environment) as process:
            try:
                printed = process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return checked(process.returncode, *printed, fails)

    return run
