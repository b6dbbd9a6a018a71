"""A job of SLURM whose time is nearly over goes back into the queue, to continue later.

SIGUSR1 and SIGUSR2 say so, by convention (``sbatch --signal=USR1@120``). SIGTERM does not: SLURM also sends it when a
user cancels the job, and requeues a preempted one itself.
"""

from __future__ import annotations

import os
import signal
import subprocess

#: Sent some time before the time limit, where they exist.
TIME_IS_OVER = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))

#: Seconds that SLURM may take to answer.
PATIENCE = 60


def requeue(number: int) -> str | None:
    """Requeue the job of SLURM that this process is the first task of, if a signal says that its time is over.

    Args:
        number: The signal.

    Returns:
        What became of it, in words; None: there is nothing to requeue.
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
        why_not = None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        why_not = str(error)
    if why_not is None:
        return f"job {job} is requeued"
    return f"job {job} could not be requeued (scontrol: {why_not}); rerun the command to resume"
