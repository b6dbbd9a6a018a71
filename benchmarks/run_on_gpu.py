"""Measures a short run of the paper's training on a GPU: time of a step, use of the GPU, memory, losses, and resuming.

    python benchmarks/run_on_gpu.py [SETTING=VALUE …]
    python benchmarks/run_on_gpu.py scale=tiny trainer.accelerator=cpu

Trains ``ssl_light scale=paper`` in mixed precision for three epochs, with unlabelled CTs from the first one, on
synthetic CTs that are prepared with the paper's spacing. SIGTERM stops the run in its second epoch, and the same
command resumes it: every step must be logged once, and the loss must fall. The paper's step takes 4.0 s: 276 hours on
two RTX 2080 Ti. The second command only tries the script, on a machine without a GPU, and writes no results.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

import lightning
import pandas as pd
import torch

from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "run_on_gpu.json"
EPOCHS, PAPER_SECONDS = 3, 4.0
SETTINGS = (
    "experiment=ssl_light", "scale=paper", "scale.supervised_epochs=0", f"trainer.max_epochs={EPOCHS}",
    f"trainer.check_val_every_n_epoch={EPOCHS}", "trainer.log_every_n_steps=1", "logger=csv", "test=false",
    "resume=auto", "data.source.labelled=4", "data.source.unlabelled=8", "data.source.validation=1",
    "data.source.test=0",
)  # fmt: skip
GPU_QUERY = (
    "nvidia-smi", "--query-gpu=timestamp,utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "500"
)  # fmt: skip
GPU_TIME = "%Y/%m/%d %H:%M:%S.%f"


class Clock(lightning.Callback):
    """Writes the time at the end of each step, and the most memory that PyTorch has held on the GPU.

    Args:
        path: A CSV file, which is continued.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """The step is finished."""
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.synchronize()
        held = torch.cuda.max_memory_reserved() if on_gpu else 0
        with self.path.open("a") as file:
            csv.writer(file).writerow([trainer.global_step, time.time(), held])


def main() -> None:
    """Train, stop, resume, and write what was measured."""
    settings = [*SETTINGS, *sys.argv[1:]]
    if not torch.cuda.is_available() and "trainer.accelerator=cpu" not in settings:
        raise SystemExit("run_on_gpu: PyTorch finds no GPU")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings += [f"data.root={folder}/cts", f"data.prepared={folder}/prepared", f"output={folder}/run"]
        settings += ["+callbacks.clock._target_=run_on_gpu.Clock", f"+callbacks.clock.path={folder}/steps.csv"]
        with watched(folder / "gpu.csv"):
            stopped = run_until_second_epoch(folder, settings)
            subprocess.run(command(settings), cwd=folder, env=environment(), check=True)
        results = {"settings": sys.argv[1:], "exit_code_when_stopped": stopped, **measured(folder)}
    results["provenance"] = provenance()
    print(json.dumps(results, indent=2))
    if torch.cuda.is_available():
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def command(settings: list[str]) -> list[str]:
    """The command of the training."""
    return [sys.executable, "-m", "dlunet", "train", *settings]


def environment() -> dict[str, str]:
    """The environment in which the training finds :class:`Clock`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent), *sys.path)))}


@contextmanager
def watched(path: Path) -> Iterator[None]:
    """While the block runs, write load (%) and memory (MiB) of the GPU to a file, if there is one."""
    if shutil.which(GPU_QUERY[0]) is None:
        yield
        return
    with path.open("w") as file, subprocess.Popen(GPU_QUERY, stdout=file) as watching:
        try:
            yield
        finally:
            watching.terminate()


def run_until_second_epoch(folder: Path, settings: list[str]) -> int:
    """Train, ask the run to stop after some steps of the second epoch, and return its exit code."""
    with subprocess.Popen(command(settings), cwd=folder, env=environment()) as process:
        while process.poll() is None:
            table = folder / "run" / "metrics.csv"
            if table.exists() and (pd.read_csv(table)["epoch"] == 1).any():
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.5)
        return process.wait()


def measured(folder: Path) -> dict[str, Any]:
    """What the files of a run say."""
    steps = pd.read_csv(folder / "steps.csv", names=["step", "at", "held"])
    logged = pd.read_csv(folder / "run" / "metrics.csv").dropna(subset="train/loss")
    losses = [mean(epoch["train/loss"]) for _, epoch in logged.groupby("epoch")]
    last_epoch = steps[steps["step"] > steps["step"].max() // EPOCHS * (EPOCHS - 1)]
    seconds = median(last_epoch["at"].diff().dropna())
    found = {
        "steps": len(logged),
        "every_step_once": logged["step"].tolist() == list(range(int(steps["step"].max()))),
        "mean_loss_of_epochs": [round(loss, 4) for loss in losses],
        "loss_falls": losses[-1] < losses[0],
        "seconds_a_step": round(seconds, 4),
        "paper_seconds_a_step": PAPER_SECONDS,
        "memory_held_gib": round(steps["held"].max() / 2**30, 2),
    }
    if (folder / "gpu.csv").exists():
        gpu = pd.read_csv(folder / "gpu.csv", names=["at", "busy", "used"])
        at = gpu["at"].map(lambda text: datetime.strptime(text, GPU_TIME).timestamp())
        busy = gpu["busy"][at.between(last_epoch["at"].min(), last_epoch["at"].max())]
        found |= {"gpu_busy_percent": round(busy.mean(), 1), "gpu_memory_gib": round(gpu["used"].max() / 2**10, 2)}
    return found


if __name__ == "__main__":
    main()
