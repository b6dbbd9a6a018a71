"""Training through its real entry points, at a tiny size."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TINY = ("scale=tiny", "data=flare22", "logger=csv", "data.workers=1")


@pytest.fixture(scope="module")
def place(tiny_flare22, tmp_path_factory):
    """A working folder with a dataset, prepared by the first run."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_flare22(folder / "flare22")
    return folder


def command(*words: str) -> list[str]:
    flags = [word for word in words if word.startswith("-")]
    overrides = [word for word in words if word not in flags]
    fixed = (*TINY, "data.root=flare22", "data.prepared=prepared")
    return [sys.executable, str(ROOT / "train.py"), *flags, *fixed, *overrides]


def train(place: Path, *overrides: str, expect: int = 0) -> str:
    done = subprocess.run(command(*overrides), cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def metrics(run: Path, column: str) -> list[tuple[int, float]]:
    with (run / "metrics.csv").open() as lines:
        return [(int(row["step"]), float(row[column])) for row in csv.DictReader(lines) if row.get(column)]


def test_same_seed_gives_same_losses_and_another_seed_others(place):
    for output, seed in (("once", 1), ("twice", 1), ("other", 2)):
        train(place, "experiment=ssl_light", f"output={output}", f"seed={seed}", "trainer.max_epochs=1")
    losses = [metrics(place / run, "train/loss") for run in ("once", "twice", "other")]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1] != losses[2]


def test_killed_run_continues_to_the_same_end(place):
    settings = ("experiment=ssl_light", "trainer.max_epochs=4", "sampling.steps_per_epoch=6")
    train(place, *settings, "output=whole")
    killed = place / "killed"
    with subprocess.Popen(command(*settings, "output=killed"), cwd=place, stdout=subprocess.DEVNULL) as process:
        # Kill in mid-epoch: the last checkpoint is an epoch old by the time that later steps are on record.
        while not (killed / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert "resume=auto" in train(place, *settings, "output=killed", expect=1)
    train(place, *settings, "output=killed", "resume=auto")
    assert metrics(killed, "train/loss") == metrics(place / "whole", "train/loss")
    weights = [torch.load(place / run / "checkpoints/last.ckpt", weights_only=True) for run in ("whole", "killed")]
    for name, tensor in weights[0]["state_dict"].items():
        assert torch.equal(tensor, weights[1]["state_dict"][name]), name


def test_resume_refuses_other_settings(place):
    train(place, "experiment=sup_light", "output=settings")
    message = train(
        place, "experiment=sup_light", "output=settings", "resume=auto", "optimizer.algorithm.lr=1", expect=1
    )
    assert "optimizer.algorithm.lr: found 0.02, now 1" in message
    assert "Traceback" not in message


def test_sweep_makes_readable_folders_and_scores(place):
    train(place, "-m", "experiment=sup_light,ssl_light", "seed=0,1", "test=true", "hydra.sweep.dir=sweep")
    folders = sorted(path.name for path in (place / "sweep").iterdir() if path.is_dir())
    assert folders == ["0_sup_light_seed0", "1_sup_light_seed1", "2_ssl_light_seed0", "3_ssl_light_seed1"]
    for folder in folders:
        assert (place / "sweep" / folder / "checkpoints" / "best.ckpt").is_file()
        rows = (place / "sweep" / folder / "scores" / "scores.csv").read_text().splitlines()
        assert rows[0] == "case,organ,dsc,nsd"
        assert len(rows) == 1 + 2 * 13


def test_table_sweep_continues_and_a_finished_run_can_be_made_longer(place):
    sweep = ("-m", "+sweep=table4")
    train(place, *sweep)
    run = place / "sweeps" / "table4-flare22-tiny" / "0_loss_dice_ce"
    assert len(metrics(run, "train/loss")) == 8
    before = (run / "predictions" / "prediction.json").read_text()
    train(place, *sweep, "trainer.max_epochs=3", "resume=auto")
    assert len(metrics(run, "train/loss")) == 12
    assert (run / "predictions" / "prediction.json").read_text() != before


def test_runs_of_a_sweep_are_wandb_runs_of_their_own(place):
    train(place, "-m", "experiment=sup_light", "seed=0,1", "logger=wandb", "hydra.sweep.dir=wandb")
    for seed in (0, 1):
        folder = place / "wandb" / f"{seed}_sup_light_seed{seed}" / "wandb"
        assert len(list(folder.glob("offline-run-*/*.wandb"))) == 1


def test_validation_cases_are_scored_where_test_cases_have_no_labels(tiny_flare22, tmp_path):
    tiny_flare22(tmp_path / "flare22")
    shutil.rmtree(tmp_path / "flare22" / "Testing" / "labels")
    printed = train(tmp_path, "experiment=sup_light", "output=run", "test=true", "trainer.max_epochs=1")
    assert "no test case has labels; the validation cases are scored instead" in printed
    rows = (tmp_path / "run" / "scores" / "scores.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"FLARETs_0001"}


@pytest.mark.parametrize("setting", ["accelerator=gpu", "precision=banana", "devices=0", "+no_such_setting=1"])
def test_bad_trainer_settings_end_in_one_message(place, setting):
    if setting == "accelerator=gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    key = setting.removeprefix("+")
    message = train(place, "experiment=sup_light", "output=bad", setting.replace(key, f"trainer.{key}"), expect=1)
    assert "dlunet: trainer: " in message and "check the trainer settings" in message
    assert "Traceback" not in message


NOTING = """
import os
from dlunet.sampling import Augmentation

def note(subject):
    with open(f"cases-{os.getpid()}.txt", "a") as file:
        print(subject["case"], file=file)
    return subject

class Noting(Augmentation):
    def __init__(self):
        super().__init__()
        self.after = note
"""


def test_two_processes_train_on_disjoint_cases(place, monkeypatch):
    """Each process notes the cases of its patches, labelled and unlabelled."""
    (place / "noting.py").write_text(NOTING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]))
    noting = ("augmentation=none", "augmentation._target_=noting.Noting")
    devices = ("trainer.devices=2", "trainer.accelerator=cpu")
    train(place, "experiment=ssl_light", "output=two", "sampling.steps_per_epoch=6", *devices, *noting)
    assert len(metrics(place / "two", "train/loss")) == 12
    assert (place / "two" / "checkpoints" / "best.ckpt").is_file()
    first, second = (set(path.read_text().split()) for path in place.glob("cases-*.txt"))
    cases = json.loads((place / "two" / "cases.json").read_text())
    assert not first & second
    assert first | second == {*cases["labelled"], *cases["unlabelled"]}
    assert all(seen & set(cases[part]) for seen in (first, second) for part in ("labelled", "unlabelled"))


def test_table_3_goes_through_and_the_report_prints_its_rows(place):
    train(place, "-m", "+sweep=table3", "hydra.sweep.dir=table3")
    report = [sys.executable, "-m", "dlunet", "report", "runs=table3", "output=page"]
    printed = subprocess.run(report, cwd=place, check=True, capture_output=True, text=True).stdout
    page = (place / "page" / "index.html").read_text()
    paper = {
        "nnU-Net w/o SSL": "0.869",
        "nnU-Net w SSL": "0.895",
        "Light UNet w/o SSL": "0.837",
        "Light UNet w SSL": "0.878",
    }
    for row, dsc in paper.items():
        assert row in page and dsc in page
        assert row in printed and f"{float(dsc):.2f}".removeprefix("0") in printed
