"""Measures how long a training step waits for its data, and compares it with the same step on ready tensors.

    python benchmarks/waiting_for_data.py

Trains ``ssl_light`` at ``scale=cpu`` on prepared synthetic abdomens in one process. Epochs with the real data module
alternate with epochs of ready batches, taken from it beforehand. Prints, for 200 steps each, the median fraction of the
time in which the step waits for data, and the median ratio of the times of adjacent epochs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "waiting_for_data.json"
PAIRS, STEPS, WARM_UP, READY = 7, 200, 10, 20

#: Runs the command with Lightning's profiler, which times the requests for data, and with every second epoch on ready
#: batches.
TIMED = """
import copy, json, sys, time
from itertools import islice
import lightning
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.utilities import CombinedLoader
from dlunet.cli import run_verb
from dlunet.sampling import PatchDataModule

answer, kept, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
profiler, steps = SimpleProfiler(), []

class Clock(lightning.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, step):
        waited = profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"][-1]
        steps.append((trainer.current_epoch, step, time.perf_counter(), waited))

begin = lightning.Trainer.__init__
def begin_timed(self, *args, callbacks=(), **settings):
    begin(self, *args, callbacks=[*callbacks, Clock()], profiler=profiler, **settings)
lightning.Trainer.__init__ = begin_timed

class Ready:
    def __init__(self, batches, length):
        self.batches, self.length = batches, length
    def __len__(self):
        return self.length
    def __iter__(self):
        return (self.batches[k % len(self.batches)] for k in range(self.length))

real = PatchDataModule.train_dataloader
def alternately(self):
    if self.trainer.current_epoch % 2 == 0:
        return real(self)
    if not hasattr(self, "ready"):
        self.ready = [copy.deepcopy(batch) for batch, *_ in islice(real(self), kept)]
        self.teardown("fit")
    return CombinedLoader(Ready(self.ready, self.steps_per_epoch), mode="min_size")
PatchDataModule.train_dataloader = alternately

run_verb("train", words)
json.dump(steps, open(answer, "w"))
"""


def main() -> None:
    """Measure and write the results."""
    epochs = measured(PAIRS + 1)[2:]  # the first pair is the warm-up
    real, ready = epochs[::2], epochs[1::2]
    result = {
        "step_ms": round(statistics.median(epoch["step_ms"] for epoch in real), 1),
        "step_ms_on_ready_tensors": round(statistics.median(epoch["step_ms"] for epoch in ready), 1),
        "ratio": round(statistics.median(a["step_ms"] / b["step_ms"] for a, b in zip(real, ready, strict=True)), 3),
        "waiting": round(statistics.median(epoch["waiting"] for epoch in real), 4),
        "waiting_on_ready_tensors": round(statistics.median(epoch["waiting"] for epoch in ready), 4),
    }
    print(result)
    RESULTS.write_text(json.dumps({**result, "epochs": epochs, "provenance": provenance()}, indent=2) + "\n")


def measured(pairs: int) -> list[dict[str, float]]:
    """For each epoch, on real and ready data in turn, the mean time of a step and the fraction of it spent waiting."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        words = [
            "experiment=ssl_light", "scale=cpu", "scale.supervised_epochs=0", "logger=csv", "data.source.labelled=2",
            "data.source.unlabelled=4", "data.source.validation=0", "data.source.test=0", f"data.root={folder}/phantom",
            f"sampling.steps_per_epoch={WARM_UP + STEPS}", f"trainer.max_epochs={2 * pairs}", f"output={folder}/run",
        ]  # fmt: skip
        command = [sys.executable, "-c", TIMED, str(answer), str(READY), *words]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        steps = json.loads(answer.read_text())
    epochs = []
    for number in range(2 * pairs):
        timed = [(end, waited) for epoch, step, end, waited in steps if epoch == number and step >= WARM_UP - 1]
        duration = timed[-1][0] - timed[0][0]
        waited = sum(waited for _, waited in timed[1:])
        epochs.append({"step_ms": round(duration / STEPS * 1000, 2), "waiting": round(waited / duration, 4)})
    return epochs


if __name__ == "__main__":
    main()
