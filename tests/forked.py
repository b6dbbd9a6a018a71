"""Commands in new processes, forked from one that has all imports: these take longer than most commands in tests."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

#: Seconds after which a process counts as hanging.
TIMEOUT = 300


def forking() -> ForkServerContext:
    """The context of processes that begin with the imports of all commands."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dlunet.pipelines"])
    return context


def exit_code_of(function: Callable[..., None], *arguments: object) -> int:
    """Call a function in a process of its own, which it may kill, and return the exit code."""
    process = forking().Process(target=function, args=arguments)
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


class ForkedCommand:
    """``python PROGRAM …`` or ``python -m MODULE …``, with the members of :class:`subprocess.Popen` that tests use.

    Args:
        program: The path of a program, or the name of a module.
        words: Its arguments.
        cwd: Its working folder.
        environment: Environment variables that it has besides those of the tests.
    """

    def __init__(self, program: str, words: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        outputs = [str(path) for path in self._outputs]
        arguments = (program, list(words), str(cwd), {**os.environ, **environment}, outputs)
        self._process = forking().Process(target=_run, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    def __enter__(self) -> "ForkedCommand":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("dlunet", timeout)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, ...]:
        self.wait(timeout)
        return tuple(path.read_text(errors="replace") if path.exists() else "" for path in self._outputs)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _run(program: str, words: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    """Run a program as a new interpreter would, to its end; by default without processes for cases, which import
    everything again."""
    import torch

    from dlunet import parallel
    from dlunet.signals import ASKING

    for stream, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = os.fdopen(1, "w", 1, encoding, "strict", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding, "backslashreplace", closefd=False)
    for number in ASKING:  # a background job of a shell, as the tests may be, ignores some
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    parallel.available_cores = lambda: 1
    sys.argv = [program, *words]
    try:
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
