"""The used and the logged learning rates of every step follow their closed form, also in a resumed run."""

import csv
from itertools import product

import lightning
import pytest
import torch

from dlunet.labels import FLARE22
from dlunet.preparation import Intensity, Plan
from dlunet.signals import StopRequest
from dlunet.training import RunFolder
from dlunet.training.build import build_module
from dlunet.training.trainer import build_trainer

PATCH = (16, 32, 32)
PLAN = Plan((8.0, 8.0, 8.0), PATCH, Intensity(0, 1, 0, 1))
STEPS = 3
EXPECTED = {
    "poly": lambda epoch, batch, epochs: 0.02 * (1 - (epoch + batch / STEPS) / epochs) ** 0.9,
    "halving": lambda epoch, batch, epochs: 0.02 / 2 ** (epoch // 2),
}
#: The streams of patches of each method.
STREAMS = {"supervised": ["labelled"], "cross_pseudo": ["labelled", "unlabelled_i", "unlabelled_j"]}


class Rates(lightning.Callback):
    """Records the learning rate of every optimiser step."""

    def __init__(self):
        self.used = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        (group,) = optimizer.param_groups
        self.used.append(group["lr"])


@pytest.fixture
def train(schedule, method, compose, tmp_path):
    """``train(max_epochs, epochs_done)`` starts or resumes training and returns the learning rates used."""

    def run(max_epochs, epochs_done=0):
        folder = RunFolder(tmp_path / "run")
        settings = ["scale=tiny", "logger=csv", "optimizer=adamw", f"optimizer/schedule={schedule}", "name=x"]
        every = ["optimizer.schedule.every=2"] if schedule == "halving" else []
        where = [f"output={folder.path}", f"trainer.max_epochs={max_epochs}", "trainer.accelerator=cpu"]
        config = compose("train", [*settings, *every, *where, f"method={method}"])
        rates = Rates()
        trainer = build_trainer(config, folder, False, epochs_done * STEPS, StopRequest())
        trainer.callbacks.append(rates)
        patch = {"weak": torch.randn(1, 1, *PATCH), "label": torch.randint(0, 14, (1, *PATCH))}
        batches = [dict.fromkeys(STREAMS[method], patch)] * STEPS
        module = build_module(config, PLAN, FLARE22)
        last = folder.last if epochs_done else None
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        trainer.fit(module, loader, ckpt_path=last, weights_only=True)
        return rates.used, folder

    return run


def logged(folder):
    with (folder.path / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row["train/lr"])) for row in csv.DictReader(file) if row["train/lr"]]


def begin_another_epoch(folder):
    """Leave metrics.csv as a killed run does: with rates of steps that will be repeated, the last row truncated."""
    path = folder.path / "metrics.csv"
    with path.open() as file:
        columns = csv.DictReader(file).fieldnames
    rows = [{"step": str(2 * STEPS + k), "train/lr": "9"} for k in range(2)]
    lines = [",".join(row.get(column, "") for column in columns) for row in rows]
    path.write_text(path.read_text() + "\n".join(lines)[:-2])


#: Schedule, method, and whether the schedule is in the checkpoint; if not, that is one of an earlier version.
CASES = list(product(EXPECTED, STREAMS, [True, False]))
#: Half of them, with every pair of choices; the others are slow.
PAIRS = {
    ("poly", "supervised", True),
    ("poly", "cross_pseudo", False),
    ("halving", "supervised", False),
    ("halving", "cross_pseudo", True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("schedule", "method", "kept"),
    [pytest.param(*case, marks=() if case in PAIRS else pytest.mark.slow) for case in CASES],
)
def test_rates_have_their_closed_form_also_in_a_run_that_goes_on(train, schedule, kept):
    """The run resumes with more epochs, so that the remaining rates change if they depend on the last epoch."""
    used, folder = train(2)
    if not kept:
        values = torch.load(folder.last, weights_only=True)
        assert values["lr_schedulers"]
        torch.save({**values, "lr_schedulers": []}, folder.last)
    begin_another_epoch(folder)
    more, _ = train(5, epochs_done=2)
    expected = [EXPECTED[schedule](epoch, batch, 2) for epoch in range(2) for batch in range(STEPS)]
    expected += [EXPECTED[schedule](epoch, batch, 5) for epoch in range(2, 5) for batch in range(STEPS)]
    assert used + more == expected
    assert logged(folder) == list(enumerate(expected))
