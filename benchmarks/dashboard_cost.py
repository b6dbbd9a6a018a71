"""Measures what dashboards cost: the same training without them, with Weights & Biases offline and with TensorBoard.

    python benchmarks/dashboard_cost.py

Trains ``ssl_light`` at ``scale=demo`` on synthetic abdomens, several times with each logger in turn. Prints for each
dashboard medians: the share of the training time that its callbacks and loggers take, without and with what they do
once (such as making the truth of the probe's patches), and the ratio of the time per step to that of the run without a
dashboard beside it. The time per step includes validation and checkpoints, but not the first epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "dashboard_cost.json"
LOGGERS, REPEATS = ("csv", "wandb", "tensorboard"), 5

#: Runs the command with a clock at the beginning of the training and of each epoch, and around dashboards.
TIMED = """
import json, sys, time
from functools import wraps
import lightning
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from dlunet.cli import run_verb
from dlunet.training.dashboards import callbacks, probe, timing

answer, words = sys.argv[1], sys.argv[2:]
spent, running, times = 0.0, False, []

def timed(function):
    @wraps(function)
    def run(*args, **settings):
        global spent, running
        if running:
            return function(*args, **settings)
        running, begin = True, time.perf_counter()
        try:
            return function(*args, **settings)
        finally:
            running, spent = False, spent + time.perf_counter() - begin
    return run

for owner in (callbacks.Settings, callbacks.ValidationSlices, probe.Probe, timing.Timing):
    for name in [name for name in vars(owner) if name.startswith("on_")]:
        setattr(owner, name, timed(getattr(owner, name)))
for owner in (TensorBoardLogger, WandbLogger):
    for name in ("log_metrics", "log_hyperparams", "save"):
        setattr(owner, name, timed(getattr(owner, name)))

class Clock(lightning.Callback):
    def on_fit_start(self, trainer, module):
        times.append((trainer.global_step, time.perf_counter(), spent))
    on_train_epoch_start = on_train_end = on_fit_start

begin = lightning.Trainer.__init__
def begin_timed(self, *args, callbacks=(), **settings):
    begin(self, *args, callbacks=[*callbacks, Clock()], **settings)
lightning.Trainer.__init__ = begin_timed

run_verb("train", words)
json.dump(times, open(answer, "w"))
"""


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs with each logger")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON file of results")
    parser.add_argument("settings", nargs="*", default=["scale=demo"], help="settings of the training")
    given = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {logger: [] for logger in LOGGERS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.repeats):
            for logger in LOGGERS:
                runs[logger].append(measured(Path(folder), logger, number, given.settings))
                print(logger, runs[logger][-1], flush=True)
    results = {logger: summary(runs[logger], without=runs["csv"]) for logger in LOGGERS}
    print(json.dumps(results, indent=2))
    saved = {"settings": given.settings, **results, "runs": runs, "provenance": provenance()}
    given.output.write_text(json.dumps(saved, indent=2) + "\n")


def summary(with_one: Sequence[dict[str, float]], without: Sequence[dict[str, float]]) -> dict[str, float]:
    """The medians of the runs with a logger, and of their ratios to the runs without a dashboard."""
    ratios = [one["step_ms"] / other["step_ms"] for one, other in zip(with_one, without, strict=True)]
    medians = {name: statistics.median(run[name] for run in with_one) for name in with_one[0]}
    return {**medians, "ratio": round(statistics.median(ratios), 4)}


def measured(folder: Path, logger: str, number: int, settings: Sequence[str]) -> dict[str, float]:
    """Train once; the time per step, and the shares of the training time spent on the dashboard."""
    answer, output = folder / "answer.json", folder / f"{logger}-{number}"
    words = ["experiment=ssl_light", *settings, f"logger={logger}", f"data.root={folder}/phantom", f"output={output}"]
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DATA_DIR": str(folder)}
    command = [sys.executable, "-c", TIMED, str(answer), *words]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    (_, begin, _), _, (first, second_epoch, spent_first), *_, (last, end, spent) = json.loads(answer.read_text())
    return {
        "step_ms": round((end - second_epoch) / (last - first) * 1000, 2),
        "share": round((spent - spent_first) / (end - second_epoch), 5),
        "share_with_beginning": round(spent / (end - begin), 5),
        "seconds": round(spent, 2),
        "seconds_of_training": round(end - begin, 1),
    }


if __name__ == "__main__":
    main()
