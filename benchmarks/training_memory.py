"""Measures the peak memory of short trainings at each scale, with the process that reads patches.

    python benchmarks/training_memory.py

Steps need what they need from the first one with unlabelled CTs on, so each training has one epoch of a few steps. The
memory is that of the command and all its child processes, see ``process_memory.py``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from process_memory import peak_of_family

from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "training_memory.json"
EXPERIMENTS, SCALES, STEPS = ("sup_light", "ssl_light"), ("demo", "cpu", "paper"), 3
CASES = ("data.source.labelled=3", "data.source.unlabelled=4", "data.source.validation=1", "data.source.test=0")
SETTINGS = (
    "trainer.max_epochs=1", f"sampling.steps_per_epoch={STEPS}", "sampling.num_workers=1", "scale.supervised_epochs=0",
    "trainer.accelerator=cpu", "trainer.precision=32-true", "logger=csv", "test=false",
)  # fmt: skip


def main() -> None:
    """Train and write the peak memory of each training in GiB."""
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for scale in SCALES:
            shared = [f"scale={scale}", f"data.root={folder}/cts", f"data.prepared={folder}/{scale}", *CASES]
            peak_of_family(["-m", "dlunet", "prepare", *shared], folder)  # not part of the training
            for experiment in EXPERIMENTS:
                words = [f"experiment={experiment}", f"output={folder}/{experiment}-{scale}", *shared, *SETTINGS]
                peaks[f"{experiment} scale={scale}"] = peak_of_family(["-m", "dlunet", "train", *words], folder)
                print(peaks, flush=True)
    RESULTS.write_text(json.dumps({"peak_gib": peaks, "steps": STEPS, "provenance": provenance()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
