"""Rounds of self-training: which cases are kept, what each round trains, and a command that is killed and run again."""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from omegaconf import OmegaConf

from dlunet import cli
from dlunet.errors import UserError
from dlunet.evaluation.agreement import agreement_of_files
from dlunet.labels import label_set
from dlunet.networks import load_bundle
from dlunet.rounds import keep_agreeing
from dlunet.training.case_dice import CaseDice
from tests.commands import TINY
from tests.forked import exit_code_of

SHORT = ("trainer.max_epochs=1", "sampling.num_workers=0")
LABELS = label_set("two", {1: "a", 2: "b"})


@pytest.fixture
def self_train(dlunet, place):
    """``self_train(setting, …)`` runs the command in ``place`` and returns what it printed."""
    return lambda *words, fails=False: dlunet("self_train", *TINY, *SHORT, *words, cwd=place, fails=fails).all


@pytest.fixture
def label_maps(tmp_path, write_volume):
    """Two rounds' label maps of four cases that agree by 1, 1/2, 0, and not at all as both are empty."""
    values = {"same": ([1, 2], [1, 2]), "half": ([1, 2], [1, 0]), "other": ([1, 0], [2, 0]), "empty": ([0, 0], [0, 0])}
    return [
        {
            name: write_volume(tmp_path / str(k) / f"{name}.nii.gz", np.array(pair[k], np.uint8).reshape(1, 1, 2))
            for name, pair in values.items()
        }
        for k in (0, 1)
    ]


def kept_by(folder):
    """The rows of the table by case."""
    table = pd.read_csv(folder / "kept.csv", dtype=str, keep_default_na=False)
    assert list(table.columns) == ["case", "agreement", "kept", "reason"]
    return {row[0]: tuple(row[1:]) for row in table.itertuples(index=False)}


def test_label_maps_that_are_replaced_while_they_are_compared(label_maps, tmp_path, monkeypatch):
    before, now = label_maps

    def compare(pair, labels):
        agreement = agreement_of_files(pair, labels)
        shutil.copyfile(before["other"], now["other"])
        return agreement

    with monkeypatch.context() as patch:
        patch.setattr("dlunet.rounds.agreement_of_files", compare)
        keep_agreeing(before, {"other": now["other"]}, tmp_path / "kept", LABELS, 0.0, workers=1)
    assert kept_by(tmp_path / "kept")["other"][0] == "0.0"
    keep_agreeing(before, {"other": now["other"]}, tmp_path / "kept", LABELS, 0.0, workers=1)
    assert kept_by(tmp_path / "kept")["other"][0] == "1.0"


@pytest.mark.parametrize(("least", "kept"), [(1.0, ["same"]), (0.5, ["half", "same"]), (0, ["half", "other", "same"])])
def test_cases_on_which_two_rounds_agree_are_kept(label_maps, tmp_path, least, kept):
    before, now = label_maps
    assert keep_agreeing(before, now, tmp_path / "kept", LABELS, least, workers=1) == len(kept)
    assert sorted(path.name for path in (tmp_path / "kept").glob("*.nii.gz")) == [f"{name}.nii.gz" for name in kept]
    assert all((tmp_path / "kept" / f"{name}.nii.gz").read_bytes() == now[name].read_bytes() for name in kept)
    rows = kept_by(tmp_path / "kept")
    assert {name: row[0] for name, row in rows.items()} == {"same": "1.0", "half": "0.5", "other": "0.0", "empty": ""}
    assert rows["empty"] == ("", "no", "neither round finds any class")
    for name in ("same", "half", "other"):
        why = ("yes", f"agreement of at least {least}") if name in kept else ("no", f"agreement below {least}")
        assert rows[name][1:] == why


def test_a_choice_is_made_again_only_if_it_depends_on_something_else(label_maps, tmp_path, write_volume):
    before, now = label_maps
    folder, made = tmp_path / "kept", []
    changed = write_volume(tmp_path / "2" / "half.nii.gz", np.ones((1, 1, 2), np.uint8))

    def keep(least):
        keep_agreeing(before, now, folder, LABELS, least, workers=1)
        made.append((folder / "kept.csv").stat().st_mtime_ns)

    keep(0.5)
    now["same"].touch()
    keep(0.5)
    assert made[1] == made[0] and "half" in {path.name.split(".")[0] for path in folder.iterdir()}
    keep(0.9)
    assert made[2] != made[1] and kept_by(folder)["half"][1] == "no"
    changed.replace(before["half"])
    keep(0.9)
    assert made[3] != made[2] and kept_by(folder)["half"][0] == "0.6667"
    (folder / "made_from.json").write_text("{")
    keep(0.9)
    assert made[4] != made[3]


@pytest.mark.parametrize("damage", ["label map lost", "table lost", "table empty"])
def test_a_folder_that_lost_files_is_made_again(label_maps, tmp_path, damage):
    def keep():
        return keep_agreeing(*label_maps, tmp_path / "kept", LABELS, 0.5, workers=1)

    assert keep() == 2
    whole = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    if damage == "table empty":
        (tmp_path / "kept" / "kept.csv").write_text("\n")
    else:
        (tmp_path / "kept" / ("kept.csv" if damage == "table lost" else "same.nii.gz")).unlink()
    assert keep() == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == whole


def test_cases_that_a_round_could_not_label_are_in_the_table(label_maps, tmp_path):
    before, now = ({**maps, "new": None} for maps in label_maps)
    before["same"], now["half"] = None, None
    why = "not labelled in both rounds"
    assert keep_agreeing(before, now, tmp_path / "kept", LABELS, 0.0, workers=1) == 1
    rows = kept_by(tmp_path / "kept")
    assert {name for name, row in rows.items() if row == ("", "no", why)} == {"same", "half", "new"}
    assert rows["other"][1] == "yes" and rows.keys() == now.keys()
    before["other"] = None
    for _ in range(2):
        with pytest.raises(UserError, match=rf"none of the 5 .*: {why} \(4\), neither round finds any class \(1\);"):
            keep_agreeing(before, now, tmp_path / "kept", LABELS, 0.0, workers=1)


def test_a_folder_that_was_being_replaced_when_killed_is_not_finished(label_maps, tmp_path, monkeypatch):
    before, now = label_maps

    def half_removed(folder, **_):
        (folder / "same.nii.gz").unlink()
        raise KeyboardInterrupt

    def keep(least):
        return keep_agreeing(before, now, tmp_path / "kept", LABELS, least, workers=1)

    keep(0.5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dlunet.rounds.shutil.rmtree", half_removed)
        keep(0.9)
    keep(0.5)
    assert sorted(path.name for path in (tmp_path / "kept").glob("*.nii.gz")) == ["half.nii.gz", "same.nii.gz"]


def test_no_case_is_kept(label_maps, tmp_path):
    before, now = ({name: maps[name] for name in ("half", "other", "empty")} for maps in label_maps)
    for _ in range(2):  # the second time, the choice is made already
        with pytest.raises(
            UserError, match=r"none of the 3 unlabelled .* by 0\.0 to 0\.5, median 0\.25; .*=0\.6; lower"
        ):
            keep_agreeing(before, now, tmp_path / "kept", LABELS, 0.6, workers=1)
    assert [row[1] for row in kept_by(tmp_path / "kept").values()] == ["no"] * 3
    before, now = ({"empty": maps["empty"]} for maps in label_maps)
    with pytest.raises(UserError, match=r"none of the 1 .*: neither round finds any class \(1\);"):
        keep_agreeing(before, now, tmp_path / "kept", LABELS, 0.6, workers=1)


def mean_dice(first, second):
    """Over FLARE22's classes that occur in one of the two files."""
    one, other = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (first, second))
    classes = sorted(set(one.ravel().tolist()) | set(other.ravel().tolist()) - {0})
    return np.mean(
        [2 * ((one == c) & (other == c)).sum() / ((one == c).sum() + (other == c).sum()) for c in classes if c]
    )


@pytest.mark.slow
def test_three_rounds(place, self_train):
    """Large networks learn from all, then from the kept pseudo-labels; the last student is a small one."""
    words = ("output=chain", "experiment=pseudo_nnunet", "test=true")
    chain = place / "chain"
    message = self_train(*words, "rounds=2", "agreement=1", fails=True)
    assert "none of the 4 unlabelled cases is kept" in message and "lower agreement" in message
    found = {name: float(row[0]) for name, row in kept_by(chain / "rounds" / "2" / "kept").items()}
    for name, value in found.items():
        pair = (chain / folder / "pseudo_labels" / f"{name}.nii.gz" for folder in (".", "rounds/2"))
        assert value == pytest.approx(mean_dice(*pair), abs=6e-5)
    least = sorted(found.values())[2]
    kept = sorted(name for name, value in found.items() if value >= least)
    assert len(kept) == 2
    self_train(*words, "rounds=2", f"agreement={least}")
    trained_with = json.loads((chain / "rounds" / "2" / "student" / "cases.json").read_text())["unlabelled"]
    assert sorted(trained_with) == kept
    finished = state(chain)
    printed = self_train(*words, "rounds=3", f"agreement={least}", "final=pseudo_light")
    assert {path: value for path, value in state(chain).items() if path in finished} == finished
    table = pd.read_csv(chain / "rounds" / "summary.csv")
    third = [row[1] for row in kept_by(chain / "rounds" / "3" / "kept").values()].count("yes")
    assert table["round"].tolist() == [0, 1, 2, 3] and table["pseudo_labelled"].tolist() == [0, 4, 2, third]
    assert table["experiment"].tolist() == ["sup_light", "pseudo_nnunet", "pseudo_nnunet", "pseudo_light"]
    assert table["network"].tolist() == ["LightUNet", "PlainUNet", "PlainUNet", "LightUNet"]
    for number, run in enumerate(("teacher", "student", "rounds/2/student", "rounds/3/student")):
        logged = pd.read_csv(chain / run / "metrics.csv")["val/dsc"].max()
        scores = pd.read_csv(chain / run / "scores" / "scores.csv")["dsc"].mean()
        assert table["val_dsc"][number] == pytest.approx(logged, abs=6e-5)
        assert table["test_dsc"][number] == pytest.approx(scores, abs=1e-4)
    assert f"kept {third} of 4 unlabelled cases" in printed
    assert printed.rstrip().endswith(table.iloc[-1].astype(str)["test_dsc"])
    message = self_train(*words, "rounds=2", "agreement=0", fails=True)
    assert f"agreement: found {least}, now 0" in message and "set them back" in message


def test_the_best_checkpoint_of_a_round_labels_for_the_next_one_and_is_scored(place, self_train, monkeypatch):
    """The validation score of each training is highest after the second of three epochs."""
    scores = itertools.cycle([0.5, 0.75, 0.25])
    monkeypatch.setattr(CaseDice, "compute", lambda self: torch.full((13,), next(scores)))
    short = ("trainer.max_epochs=3", "sampling.steps_per_epoch=1")
    self_train("output=chain_of_best", "rounds=2", "agreement=0", *short, "test=true")
    chain, runs = place / "chain_of_best", ("teacher", "student", "rounds/2/student")
    best, last = (
        [load_bundle(chain / run / "checkpoints" / f"{which}.ckpt").digest for run in runs]
        for which in ("best", "last")
    )
    assert len({*best, *last}) == 2 * len(runs)
    labelled_by, scored_by = (
        [json.loads((chain / folder / "prediction.json").read_text())["weights"] for folder in folders]
        for folders in (("pseudo_labels", "rounds/2/pseudo_labels"), [f"{run}/predictions" for run in runs])
    )
    assert labelled_by == best[:2] and scored_by == best
    trained_on = OmegaConf.load(chain / "rounds" / "2" / "student" / "config.yaml").data.pseudo_labels
    assert place / trained_on == chain / "rounds" / "2" / "kept"
    assert pd.read_csv(chain / "rounds" / "summary.csv")["val_dsc"].tolist() == [0.75] * 3


def test_a_folder_that_was_moved_is_resumed(place, self_train):
    words = ("rounds=2", "agreement=0")
    first, second = place / "first", place / "second"
    self_train(*words, "output=first")
    finished = {second / path.relative_to(first): time for path, time in state(first).items()}
    first.rename(second)
    self_train(*words, f"output={second}")
    assert state(second) == finished


def test_other_pseudo_labels_are_not_taken_into_a_trained_student(place, self_train):
    self_train("output=changed")
    path = place / "changed" / "pseudo_labels" / "Case_00003.nii.gz"
    whole = path.read_bytes()
    sitk.WriteImage(sitk.ReadImage(str(path)) * 0, str(path))
    message = self_train("output=changed", fails=True)
    assert "student: contains a run on other pseudo-labels (1 changed: Case_00003); restore them" in message
    path.write_bytes(whole)
    self_train("output=changed")


def test_files_that_cannot_be_used_are_left_out(place, tiny_flare22, self_train):
    """A damaged unlabelled CT has no pseudo-labels, a damaged test CT and a damaged label map no scores."""
    root = tiny_flare22(place / "damaged", test=3)
    for path in ("Training/FLARE22_UnlabeledCase1-1000/Case_00002_0000", "Testing/images/FLARETs_0001_0000"):
        (root / f"{path}.nii.gz").write_bytes((root / f"{path}.nii.gz").read_bytes()[:500])
    label_map = root / "Testing" / "labels" / "FLARETs_0002.nii.gz"
    label_map.write_bytes(label_map.read_bytes()[:100])
    words = ("data.root=damaged", "data.prepared=damaged-prepared", "rounds=2", "agreement=0", "test=true")
    printed = self_train(*words, "output=rest")
    assert "1 of 2 cases could not be scored" in printed
    assert "1 of 4 cases could not be segmented" in printed and "1 of 3 cases could not be segmented" in printed
    assert "kept 3 of 4 unlabelled cases" in printed
    assert kept_by(place / "rest" / "rounds" / "2" / "kept")["Case_00002"] == ("", "no", "not labelled in both rounds")
    scores = pd.read_csv(place / "rest" / "rounds" / "2" / "student" / "scores" / "scores.csv")
    assert set(scores["case"]) == {"FLARETs_0003"}
    assert "1 of 3 cases could not be segmented" in self_train(*words, "output=all", "strict=true", fails=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rounds=0",), "rounds: found 0; expected a whole number, 1 or more"),
        (("rounds=2", "agreement=1.2"), "agreement: found 1.2; expected a number from 0 to 1"),
        (("final=pseudo_light",), "final: found pseudo_light with rounds=1; expected rounds=2 or more"),
        (("rounds=2", "final=pseudo_light", "network=plain"), "final: found pseudo_light with network=plain"),
        (("rounds=2", "final=nonsense"), "experiment/nonsense"),
        (("data.pseudo_labels=mine",), "data.pseudo_labels: found mine; expected none, since self_train predicts them"),
        (("teacher=pseudo_light",), "with a teacher that needs none (teacher=sup_light)"),
        (("agreement=null",), "agreement: found None; expected a number from 0 to 1"),
        (("rounds=2", "method=pseudo_label"), "data.pseudo_labels: found null"),
        (
            ("experiment=sup_light",),
            "the method of the student sup_light is Supervised, which trains on labelled cases",
        ),
        (("rounds=2", "final=sup_light"), "the method of the student sup_light is Supervised"),
    ],
)
def test_settings_that_do_not_fit(place, self_train, words, message):
    assert message in self_train(*words, "output=never", fails=True)
    assert not (place / "never").exists()


#: Stages of the command, by the file or folder that is about to appear.
STAGES = (
    "teacher/checkpoints/last.ckpt", "pseudo_labels/Case_00002.nii.gz", "student/checkpoints/best.ckpt",
    "student/checkpoints/last.ckpt", "rounds/2/pseudo_labels/prediction.json",
    "rounds/2/pseudo_labels/Case_00003.nii.gz", "rounds/2/kept/kept.csv", "rounds/2/kept",
    "rounds/2/student/config.yaml", "rounds/2/student/checkpoints/last.ckpt", "rounds/summary.csv",
)  # fmt: skip
IN_ROUNDS = ("output=killed", "rounds=2", "agreement=0")


@pytest.mark.parametrize("stages", [STAGES[9:10], pytest.param(STAGES, marks=pytest.mark.slow)])
def test_killed_at_any_stage_and_run_again(place, stages, self_train):
    """The same files result, and none that was finished before a kill is made again."""
    self_train(*IN_ROUNDS, "output=whole")
    finished = {}
    for stage in stages:
        assert exit_code_of(_run, place, stage) == -signal.SIGKILL, stage
        assert not (place / "killed" / stage).exists()
        finished |= state(place / "killed")
    assert exit_code_of(_run, place, None) == 0
    after = state(place / "killed")
    assert {path: after[path] for path in finished} == finished
    expected, found = (contents(place / folder) for folder in ("whole", "killed"))
    assert found.keys() == expected.keys()
    assert [path for path in expected if found[path] != expected[path]] == []
    for path in sorted((place / "killed").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def state(folder):
    """When the last checkpoints, label maps and tables of kept cases were written."""
    paths = [path for pattern in ("last.ckpt", "*.nii.gz", "kept.csv") for path in folder.rglob(pattern)]
    return {path: path.stat().st_mtime_ns for path in paths if "/." not in str(path)}


def contents(folder):
    """The results of a command, as far as they do not depend on time and place."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".ckpt":
            weights = torch.load(path, weights_only=True)["state_dict"]
            found[name] = {key: value.tolist() for key, value in weights.items()}
        elif path.name.endswith(".nii.gz") or path.name in ("kept.csv", "summary.csv", "cases.json", "metrics.csv"):
            found[name] = path.read_bytes()
        elif path.is_file() or path.name.startswith("."):
            found[name] = None
    return found


def _run(place: Path, stage: str | None) -> None:
    torch.set_num_threads(1)
    os.chdir(place)
    replace = Path.replace

    def replace_or_die(self, target):
        if stage is not None and str(_named(target)).endswith(f"killed/{stage}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = replace_or_die
    sys.argv = ["dlunet", "self_train", *TINY, *SHORT, *IN_ROUNDS]
    cli.main()


def _named(target: Path) -> Path:
    """A path inside a folder that is still being written, as it will be."""
    return target.parent.parent / "kept" / target.name if target.parent.name.startswith(".") else target
