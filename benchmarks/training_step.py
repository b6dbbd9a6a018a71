"""Compares time and memory of a training step with another commit.

    python benchmarks/training_step.py COMMIT

Trains ``ssl_light`` at ``scale=cpu`` and ``scale=demo`` for some steps on the same prepared synthetic abdomens,
alternately with the code of COMMIT and with this checkout, several times each. Prints the median time of a step and the
peak memory of both sides, and the median of the paired ratios. Before timing, the script checks that the first losses
of both sides are the same but for rounding.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from training_unchanged import ROOT, checkout

from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "training_step.json"
REPEATS, STEPS, WARM_UP = 7, 40, 10
SCALES = ("cpu", "demo")
SAME = 1e-3  # relative difference that rounding may make in the loss of the first step
SETTINGS = (
    "experiment=ssl_light", "scale.supervised_epochs=0", "logger=csv", "data.source.labelled=2",
    "data.source.unlabelled=4", "data.source.validation=0", "data.source.test=0", f"sampling.steps_per_epoch={STEPS}",
    "trainer.max_epochs=1",
)  # fmt: skip

#: Runs the command with a timing callback, which uses only Lightning's interface and thus works on both sides.
TIMED = """
import json, sys, time
import lightning
answer, words = sys.argv[1], sys.argv[2:]  # the command puts its own words there

class Clock(lightning.Callback):
    ends, losses = [], []
    def on_train_batch_end(self, trainer, module, *_):
        self.ends.append(time.perf_counter())
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

begin = lightning.Trainer.__init__
def begin_timed(self, *args, callbacks=(), **settings):
    begin(self, *args, callbacks=[*callbacks, Clock()], **settings)
lightning.Trainer.__init__ = begin_timed
from dlunet.cli import run_verb
run_verb("train", words)
lines = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
json.dump({"ends": Clock.ends, "losses": Clock.losses, "peak_gib": peak / 2**20}, open(answer, "w"))
"""


def main() -> None:
    """Measure both sides in turn."""
    with tempfile.TemporaryDirectory() as temporary, checkout(sys.argv[1], Path(temporary)) as (commit, before):
        results = {scale: compare({"before": before, "now": ROOT}, scale, Path(temporary)) for scale in SCALES}
    RESULTS.write_text(json.dumps({"commit": commit, **results, "provenance": provenance()}, indent=2) + "\n")


def compare(sides: dict[str, Path], scale: str, folder: Path) -> dict[str, Any]:
    """Check both sides and measure them in turn."""
    words = [*SETTINGS, f"scale={scale}"]
    losses = [run(code, words, folder)["losses"][0] for code in sides.values()]
    if abs(losses[0] - losses[1]) > SAME * abs(losses[0]):
        sys.exit(f"the first losses of the two sides differ: {losses}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for repeat in range(REPEATS):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:  # each side goes first as often as the other
            found[name].append(measured(run(sides[name], words, folder)))
            print(scale, name, found[name][-1], flush=True)
    result = summary(found)
    print(scale, result, flush=True)
    return {**result, "runs": found}


def run(code: Path, settings: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train once with the code of a checkout, on abdomens that stay in the folder."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        answer = Path(output) / "answer.json"
        words = [*settings, f"data.root={folder}/phantom", f"output={output}/run"]
        subprocess.run(
            [sys.executable, "-c", TIMED, str(answer), *words], cwd=folder, check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(code)},
        )  # fmt: skip
        return json.loads(answer.read_text())


def measured(answer: dict[str, Any]) -> dict[str, float]:
    """The median time of a step in ms, from the end of one step to the end of the next, and the peak memory in GiB."""
    ends = answer["ends"][WARM_UP:]
    step = statistics.median(later - sooner for sooner, later in pairwise(ends))
    return {"step_ms": round(1000 * step, 1), "peak_gib": round(answer["peak_gib"], 3)}


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of both sides, and the median of the paired time ratios."""
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    pairs = list(zip(found["before"], found["now"], strict=True))
    ratios = {
        name: round(statistics.median(now[key] / before[key] for before, now in pairs), 3)
        for name, key in (("time_ratio", "step_ms"), ("memory_ratio", "peak_gib"))
    }
    return {**medians, **ratios}


if __name__ == "__main__":
    main()
