"""A job of SLURM whose time is nearly over goes back into the queue, to continue later.

SIGUSR1 and SIGUSR2 say so, by convention (``sbatch --signal=USR1@120``). SIGTERM does not: SLURM also sends it when a
user cancels the job, and requeues a preempted one itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass

#: Sent some time before the time limit, where they exist.
TIME_IS_OVER = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))

#: Seconds that SLURM may take to answer.
PATIENCE = 60


@dataclass(frozen=True)
class Requeued:
    """What became of the wish to requeue a job.

    Attributes:
        job: The job's number, with that of its task if it is one of an array.
        why_not: Why it failed, or None.
    """

    job: str
    why_not: str | None = None

    def __str__(self) -> str:
        if self.why_not is None:
            return f"job {self.job} is requeued"
        return f"job {self.job} could not be requeued ({self.why_not})"


def requeue(number: int) -> Requeued | None:
    """Requeue the job of SLURM that this process is the first task of, if a signal says that its time is over.

    Args:
        number: The signal.

    Returns:
        What became of it; None: there is nothing to requeue.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if number not in TIME_IS_OVER or job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return None
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"{os.environ.get('SLURM_ARRAY_JOB_ID', job)}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Requeued(job, f"scontrol: {error}")
    return Requeued(job, None if done.returncode == 0 else done.stderr.strip() or f"scontrol: {done.returncode}")
