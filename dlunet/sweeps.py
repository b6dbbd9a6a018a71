"""Sweeps: a run that fails does not stop the others, whatever launches them, and is named at the end."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dlunet.errors import UserError, few, message_for_users
from dlunet.files import write_text
from dlunet.locks import FileLock
from dlunet.parallel import end_with_parent
from dlunet.signals import Stopped, signals_raise

#: How ``trainer.devices`` may ask for one GPU, or for all that a run sees.
ONE_DEVICE = ("1", "auto", "-1")

#: The file in the folder of a run that says why it failed.
FAILURE = "failed.txt"


class RememberCommand(Callback):
    """Hydra's callback of this process: remembers what the command that it starts is about.

    Attributes:
        folder: The folder of a sweep; None for a single run.
        resumes: Whether the same command resumes its runs, whichever config says so.
    """

    folder: Path | None = None
    resumes = False

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember it."""
        RememberCommand.resumes = OmegaConf.select(config, "resume") == "auto"

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember it, without the failures of an earlier command."""
        self.on_run_start(config)
        RememberCommand.folder = Path(config.hydra.sweep.dir)
        for failure in _failures_in(RememberCommand.folder):
            failure.unlink(missing_ok=True)


@contextmanager
def noting_failures() -> Iterator[None]:
    """Note in the folder of the run why the block failed, and go on with the sweep.

    A signal that has stopped the run is passed on to submitit, whose handler requeues the job.
    """
    try:
        try:
            yield
        except Stopped as stop:
            if "submitit" in HydraConfig.get().launcher["_target_"] and callable(signal.getsignal(stop.number)):
                signal.raise_signal(stop.number)  # an error if the job may not be requeued once more
            raise
    except Exception as error:  # whatever it is, the other runs may be fine
        message = message_for_users(error)
        folder = Path(HydraConfig.get().runtime.output_dir)
        print(f"dlunet: {folder.name}: {message or _in_short(error, lines=1)}", file=sys.stderr)
        write_text(folder / FAILURE, message or traceback.format_exc())


def failures(ended_by: Exception | None = None) -> str | None:
    """A message about the runs that failed in the sweep of this process, and about what ended it; None: all went well.

    Args:
        ended_by: An error of the launcher or the search, such as of a job that was killed. An error of another command
            than a sweep has no message.
    """
    folder, RememberCommand.folder = RememberCommand.folder, None
    if folder is None:
        return None
    told = []
    if failed := [failure.parent.name for failure in _failures_in(folder)]:
        runs = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
        told.append(f"{runs} failed: {few(failed, 5)}; {FAILURE} in the folder of each says why")
    if ended_by is not None:
        told.append(f"the sweep was ended by {message_for_users(ended_by) or _in_short(ended_by, lines=2)}")
    if not told:
        return None
    return f"{folder}: {'; '.join(told)}; rerun the command with resume=auto to finish what is missing"


def _in_short(error: Exception, lines: int) -> str:
    """The kind of an error that nobody expected, and the first lines of its message, in one line."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()][:lines]
    return ": ".join(filter(None, [type(error).__name__, " ".join(said).rstrip(".")]))


def _failures_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{FAILURE}"))


def in_own_process(run: Callable[[], float | None]) -> float | None:
    """Call a run in a forked process. If it is killed, as by the system when memory runs out, only this run has failed.

    Joblib ends all runs if one of its own processes is killed.

    Raises:
        UserError: The process was killed or stopped.
    """
    context = get_context("fork")
    score: SimpleQueue[float | None] = context.SimpleQueue()
    process = context.Process(target=_put_score, args=(run, score))
    process.start()
    try:
        process.join()
    except BaseException:  # the run does not outlive this process
        process.kill()
        raise
    if code := process.exitcode:
        number = -code if code < 0 else code - 128
        ended = signal.Signals(number).name if number in set(signal.Signals) else f"exit code {code}"
        reason = ": memory probably ran out" if number == signal.SIGKILL else ""
        raise UserError(f"the process of this run ended with {ended}{reason}")
    return None if score.empty() else score.get()


def _put_score(run: Callable[[], float | None], score: SimpleQueue[float | None]) -> None:
    end_with_parent()
    with signals_raise(), noting_failures():
        score.put(run())


def claim_gpu(devices: Any = 1, number: int = 0) -> FileLock | None:
    """Of several GPUs, let this process see one that no other process of a sweep has claimed, until it ends.

    For launchers that run several processes on one machine. Does nothing if there is no choice. Each job of SLURM may
    count its own GPUs from 0, so the claims of one say nothing to another.

    Args:
        devices: The setting ``trainer.devices``.
        number: The number of the run: it determines which GPU the run shares if all are claimed.

    Returns:
        The lock of the GPU, which the process holds until it ends.

    Raises:
        UserError: It asks for more than one.
    """
    import torch  # only here: most commands do without it

    if torch.cuda.device_count() < 2:
        return None
    if str(devices) not in ONE_DEVICE:
        raise UserError(
            f"trainer.devices: found {devices} with launcher=local, which gives each run one GPU; expected 1; leave "
            "the launcher out for runs on several GPUs, one after the other"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",")
    job = os.environ.get("SLURM_JOB_ID", "0")
    for device in gpus:
        lock = FileLock(Path(tempfile.gettempdir()) / f"dlunet-gpu-{job}-{device}.lock")
        if lock.take():
            os.environ["CUDA_VISIBLE_DEVICES"] = device
            return lock
        lock.release()
    shared = gpus[number % len(gpus)]
    os.environ["CUDA_VISIBLE_DEVICES"] = shared
    print(
        f"dlunet: warning: more runs than GPUs at once: this one shares GPU {shared}; lower hydra.launcher.n_jobs",
        file=sys.stderr,
    )
    return None
