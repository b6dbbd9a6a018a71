"""Training through its real entry points, at tiny scale."""

import csv
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from dlunet.training import RunFolder
from dlunet.training.run import check_unlabelled_helped
from tests.commands import TINY
from tests.training.wandb_files import wandb_file, wandb_records


@pytest.fixture
def train(dlunet, place):
    """``train(setting, …, cwd=place, fails=False)`` trains and returns what the command printed."""
    return lambda *words, cwd=place, fails=False: dlunet("train", *TINY, *words, cwd=cwd, fails=fails).all


@pytest.fixture
def train_process(dlunet_process, place):
    """The same with ``python train.py``."""
    return partial(dlunet_process, "train.py", *TINY, cwd=place)


def metrics(run: Path, column: str) -> list[tuple[int, float]]:
    with (run / "metrics.csv").open() as lines:
        return [(int(row["step"]), float(row[column])) for row in csv.DictReader(lines) if row.get(column)]


def test_same_seed_gives_same_losses_and_another_seed_others(place, train, train_process):
    """Also in another process, with untouched random generators and another iteration order of sets."""
    for run, output, seed in ((train, "once", 1), (train_process, "twice", 1), (train, "other", 2)):
        run("experiment=ssl_light", f"output={output}", f"seed={seed}", "trainer.max_epochs=1")
    losses = [metrics(place / run, "train/loss") for run in ("once", "twice", "other")]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1] != losses[2]


USED_FROM_9 = ("experiment=ssl_light", "scale=demo")  # the unlabelled cases, in epochs counted from 1


@pytest.mark.parametrize(
    ("words", "dsc", "warned"),
    [
        (USED_FROM_9, {4: 0.2, 8: 0.6, 12: 0.5, 16: 0.5}, "after 8 of 16 epochs"),
        (USED_FROM_9, {4: 0.2, 8: 0.6, 12: 0.7, 16: 0.5}, None),
        (USED_FROM_9, {4: 0.2, 9: 0.6, 12: 0.5}, None),
        (USED_FROM_9, {4: 0.6, 8: 0.2}, None),  # stopped before they were used
        (USED_FROM_9, {}, None),  # no validation cases
        (("experiment=sup_light", "scale=demo"), {4: 0.6, 8: 0.5, 12: 0.4}, None),
        (("experiment=ssl_light", "scale=paper"), {1: 0.6, 2: 0.5}, None),  # they are used from the first epoch on
    ],
)
def test_unlabelled_cases_that_did_not_help_are_told(tmp_path, compose, caplog, words, dsc, warned):
    rows = "".join(f"{epoch - 1},{40 * epoch - 1},{value}\n" for epoch, value in dsc.items())
    (tmp_path / "metrics.csv").write_text("epoch,step,val/dsc\n" + rows)
    check_unlabelled_helped(compose("train", words), RunFolder(tmp_path))
    assert [warned in message for message in caplog.messages] == [True] * bool(warned)


def test_a_training_tells_whether_unlabelled_cases_helped(place, train):
    """Where nothing is learnt, all epochs are alike, and the first one is the best."""
    words = ("experiment=ssl_light", "trainer.max_epochs=3", "optimizer.algorithm.lr=1e-30")
    warned = [
        "before the unlabelled cases were used" in train(*words, f"scale.supervised_epochs={alone}", f"output={alone}")
        for alone in (0, 2)
    ]
    for run in ("0", "2"):
        first, *others = [value for _, value in metrics(place / run, "val/dsc")]
        assert others == [first, first]
    assert warned == [False, True]


def test_killed_run_continues_to_the_same_end(place, train, train_process, start_dlunet):
    settings = ("experiment=ssl_light", "trainer.max_epochs=4", "sampling.steps_per_epoch=6")
    train(*settings, "output=whole")
    killed = place / "killed"
    with start_dlunet("train.py", *TINY, *settings, "output=killed", cwd=place) as process:
        # Killed in the middle of an epoch; metrics.csv may contain steps after the last checkpoint.
        while not (killed / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert "resume=auto" in train(*settings, "output=killed", fails=True)
    train_process(*settings, "output=killed", "resume=auto")
    for column in ("train/loss", "train/lr"):
        assert metrics(killed, column) == metrics(place / "whole", column) != []
    weights = [torch.load(place / run / "checkpoints/last.ckpt", weights_only=True) for run in ("whole", "killed")]
    for name, tensor in weights[0]["state_dict"].items():
        assert torch.equal(tensor, weights[1]["state_dict"][name]), name


def test_a_run_is_resumed_knowing_which_epoch_was_the_best(place, train):
    """Otherwise the first epoch after it would replace the best one, even with a lower score."""
    train("experiment=sup_light", "output=best", "trainer.max_epochs=1")
    (scored,) = (score for _, score in metrics(place / "best", "val/dsc"))
    callbacks = torch.load(place / "best" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    known = [state["best_model_score"] for key, state in callbacks.items() if "val/dsc" in key]
    assert [float(score) for score in known] == [pytest.approx(scored)]


def test_resume_refuses_labelled_cases_that_have_changed(tiny_flare22, tiny_abdomen, write_volume, tmp_path, train):
    training = tiny_flare22(tmp_path / "flare22") / "Training" / "FLARE22_LabeledCase50"
    words = ("experiment=sup_light", "output=run", "resume=auto")
    train(*words, "trainer.max_epochs=1", cwd=tmp_path)
    grid = {"spacing": (8.0, 8.0, 8.0), "orientation": "RAS"}
    for shift in (200, 0):
        write_volume(training / "images" / "FLARE22_Tr_0001_0000.nii.gz", tiny_abdomen(0).hu + shift, **grid)
        message = train(*words, cwd=tmp_path, fails=bool(shift))
        assert ("the labelled cases have changed since this run began: found the plan" in message) == bool(shift)


def test_a_run_that_ends_before_its_first_validation_is_validated_at_its_end(place, train):
    train("experiment=sup_light", "output=short", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=25")
    assert len(metrics(place / "short", "val/dsc")) == 1 and (place / "short" / "checkpoints" / "best.ckpt").exists()


def test_resume_refuses_other_settings(train):
    settings = ("experiment=sup_light", "output=settings")
    train(*settings)
    message = train(*settings, "resume=auto", "optimizer.algorithm.lr=1", fails=True)
    assert "optimizer.algorithm.lr: found 0.02, now 1" in message


def test_sweep_makes_readable_folders_and_scores(place, train):
    train("experiment=sup_light,ssl_light", "seed=0,1", "test=true", "hydra.sweep.dir=sweep", "-m")
    folders = sorted(path.name for path in (place / "sweep").iterdir() if path.is_dir())
    assert folders == ["ssl_light_seed0", "ssl_light_seed1", "sup_light_seed0", "sup_light_seed1"]
    for folder in folders:
        assert (place / "sweep" / folder / "checkpoints" / "best.ckpt").is_file()
        rows = (place / "sweep" / folder / "scores" / "scores.csv").read_text().splitlines()
        assert rows[0] == "case,organ,dsc,nsd"
        assert len(rows) == 1 + 2 * 13


@pytest.mark.slow
def test_table_sweep_continues_and_a_finished_run_can_be_made_longer(place, train):
    train("+sweep=table4", "-m")
    run = place / "sweeps" / "table4-flare22-tiny" / "loss_dice_ce"
    assert len(metrics(run, "train/loss")) == 8
    before = (run / "predictions" / "prediction.json").read_text()
    train("+sweep=table4", "trainer.max_epochs=3", "resume=auto", "-m")
    assert len(metrics(run, "train/loss")) == 12
    assert (run / "predictions" / "prediction.json").read_text() != before


def test_runs_of_a_sweep_are_wandb_runs_of_their_own(place, train_process):
    train_process("experiment=sup_light", "seed=0,1", "logger=wandb", "hydra.sweep.dir=wandb", "-m")
    for seed in (0, 1):
        file = wandb_file(place / "wandb" / f"sup_light_seed{seed}")
        run = next(record.run for record in wandb_records(file) if record.run.run_id)
        assert (run.display_name, run.run_group, run.job_type) == (
            f"sup_light-seed{seed}",
            "sup_light-flare22-tiny",
            "train",
        )
        assert set(run.tags) == {"flare22", "tiny", "paper"}


def test_validation_cases_are_scored_where_test_cases_have_no_labels(tiny_flare22, tmp_path, train):
    tiny_flare22(tmp_path / "flare22")
    shutil.rmtree(tmp_path / "flare22" / "Testing" / "labels")
    printed = train("experiment=sup_light", "output=run", "test=true", "trainer.max_epochs=1", cwd=tmp_path)
    assert "no test case has a label map; the validation cases are scored instead" in printed
    rows = (tmp_path / "run" / "scores" / "scores.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"FLARETs_0001"}
    assert (tmp_path / "run" / "scores" / "part.txt").read_text() == "validation\n"


@pytest.mark.parametrize("setting", ["accelerator=gpu", "precision=banana", "+no_such_setting=1"])
def test_bad_trainer_settings_end_in_one_message(train, setting):
    if setting == "accelerator=gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    key = setting.removeprefix("+")
    message = train("experiment=sup_light", "output=bad", setting.replace(key, f"trainer.{key}"), fails=True)
    assert "dlunet: trainer: " in message and "check the trainer settings" in message


def test_wrong_devices_end_in_one_message(train):
    message = train("experiment=sup_light", "output=bad", "trainer.devices=0", fails=True)
    assert "dlunet: trainer.devices: found 0; expected a number of devices" in message


IMPOSSIBLE = [
    (
        ("loss=ga", "loss.top=0"),
        "loss: top must be greater than 0 and at most 1, not 0; check its settings: top=0, gamma",
    ),
    (
        ("loss=ga", "loss.top=most"),
        "loss: '<' not supported between instances of 'int' and 'str'; check its settings: top",
    ),
    (("loss=ga", "loss.gamma=abc"), "loss: unsupported operand"),
    (("loss=published", "loss.epoch=soon"), "loss: '<' not supported"),
    (("loss=tversky_ce", "loss.tversky.false_positives=-1"), "loss: false_positives must be"),
    (("optimizer.algorithm.weight_decay=-1",), "optimizer.algorithm: Invalid weight_decay value: -1"),
    (("optimizer=sgd", "optimizer.algorithm.momentum=0"), "optimizer.algorithm: Nesterov momentum requires a momentum"),
    (("+optimizer.algorithm.warmup=3",), "optimizer.algorithm: AdamW.__init__() got an unexpected keyword argument"),
    (("+optimizer.algorithm.betas=[0.9]",), "check its settings: lr=0.02, weight_decay=0.01, betas=[0.9]"),
    (("optimizer/schedule=halving", "optimizer.schedule.every=0"), "optimizer.schedule: "),
    (("optimizer.schedule.power=-1",), "optimizer.schedule: 0.0 cannot be raised to a negative power"),
    (("optimizer.schedule.power=abc",), "optimizer.schedule: unsupported operand"),
    (("optimizer.schedule=null",), "optimizer.schedule: found null; expected its settings"),
    (("augmentation.affine.scales=[2,1]",), "augmentation: "),
    (("trainer.precision=banana",), "trainer: "),
    (("+trainer.strategy=fsdp",), "trainer.strategy: found fsdp"),
    (("+network.depth=7",), "network: UNet.__init__() got an unexpected keyword argument 'depth'"),
    (("plan.patch_size=[15,32,32]",), "plan.patch_size: found [15, 32, 32]; expected multiples"),
]


@pytest.mark.parametrize(("words", "message"), IMPOSSIBLE)
def test_what_cannot_be_is_named_before_anything_is_prepared(place, train, words, message):
    settings = ("experiment=sup_light", "output=impossible", "data.prepared=not_prepared", *words)
    assert message in train(*settings, fails=True)
    assert not (place / "not_prepared").exists()


def test_too_few_cases_are_counted_before_anything_is_prepared(tiny_flare22, tmp_path, train):
    tiny_flare22(tmp_path / "flare22", unlabelled=1)
    message = train("experiment=ssl_light", "output=few", cwd=tmp_path, fails=True)
    assert "found 1 unlabelled cases; expected at least 2 for this method" in message
    assert not (tmp_path / "prepared").exists()


def test_an_optimiser_whose_form_is_chosen_is_not_fused(place, train):
    train("experiment=sup_light", "output=foreach", "+optimizer.algorithm.foreach=true", "trainer.max_epochs=1")
    assert (place / "foreach" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_that_diverges_ends_with_a_message(place, train_process, devices):
    words = ("experiment=sup_light", "output=diverged", f"trainer.devices={devices}", "trainer.accelerator=cpu")
    message = train_process(*words, "optimizer.algorithm.lr=1e30", fails=True).all
    assert "in epoch 0: gradients are not finite" in message and "lower optimizer.algorithm.lr" in message
    assert not list((place / "diverged").rglob("*.ckpt"))


def test_table_3_goes_through_and_the_report_prints_its_rows(place, train, dlunet):
    train("+sweep=table3", "hydra.sweep.dir=table3", "-m")
    printed = dlunet("report", "runs=table3", "output=page", cwd=place).stdout
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


def test_a_checkpoint_that_does_not_fit_the_networks(place, dlunet):
    """As after an update of a method that has further state."""
    words = ("train", *TINY, "experiment=sup_light", "output=unfit", "resume=auto")
    dlunet(*words, "trainer.max_epochs=1", cwd=place)
    path = place / "unfit" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    missing = next(name for name in checkpoint["state_dict"] if name.endswith("weight"))
    del checkpoint["state_dict"][missing]
    torch.save(checkpoint, path)
    message = dlunet(*words, "trainer.max_epochs=2", cwd=place, fails=True).stderr
    assert "unfit: its last checkpoint does not fit" in message and missing in message and "output=FOLDER" in message
