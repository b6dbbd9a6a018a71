"""Shards of prepare, predict and evaluate: jobs that share a folder write what one job writes."""

import json
import shutil
from unittest.mock import patch

import numpy as np
import pytest
import torch

from dlunet.datasets import read_case, read_flare22
from dlunet.errors import SomeCasesFailed, UserError
from dlunet.evaluation import evaluate_folder, evaluate_shard, find_metrics
from dlunet.evaluation.pairs import score_pairs
from dlunet.labels import FLARE22
from dlunet.networks import build_network, describe
from dlunet.preparation import Intensity, Plan, prepare_dataset
from dlunet.shards import ALL, Shard, is_shard
from dlunet.volumes import Geometry, write_labels
from tests.forked import TIMEOUT, forking

COUNT = 3
SHARDS = [Shard(number, COUNT) for number in range(1, COUNT + 1)]
SHAPE = (12, 10, 8)
PLAN = Plan((8.0, 8.0, 8.0), (16, 32, 32), Intensity(-100, 200, 50, 60))
SIZES = {"features": [2, 3, 4], "strides": [[1, 2, 2], [2, 2, 2]], "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
NETWORK = {"kind": "LightUNet", "num_classes": 14, **SIZES}
PREPARE = ("scale=tiny", "data=flare22", "data.root=flare22", "data.workers=1")
UNLABELLED = "flare22/Training/FLARE22_UnlabeledCase1-1000"
#: Measurements of a job, which no two jobs share.
MEASURED = ("efficiency.csv", "efficiency.png")


def files_of(folder):
    """The contents of all files, also hidden ones, by path; locks are empty."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in MEASURED)
    return {str(path.relative_to(folder)): contents for path in paths if (contents := path.read_bytes())}


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_item_is_in_one_shard(count):
    shards = [Shard.parse(f"{number}/{count}") for number in range(1, count + 1)]
    parts = [shard.of(range(7)) for shard in shards]
    assert sorted(item for part in parts for item in part) == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [str(shard) for shard in shards] == [f"{number}/{count}" for number in range(1, count + 1)]
    assert Shard.parse(None) == ALL and ALL.of("abc") == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "-1/2", "1/2/3", "a/b", "1.5/2", ""])
def test_what_is_not_a_shard(text):
    assert not is_shard(text)


@pytest.fixture(scope="module")
def checkpoint(place):
    """A network that segments something."""
    torch.manual_seed(0)
    weights = {f"networks.0.{name}": value for name, value in build_network(NETWORK).state_dict().items()}
    torch.save({"dlunet": describe(NETWORK, PLAN, FLARE22), "state_dict": weights}, place / "network.ckpt")
    return "network.ckpt"


def test_three_jobs_at_once_write_the_files_of_one(place, checkpoint, dlunet, start_dlunet):
    def compare(verb, one, many, *words):
        dlunet(verb, *words, one, cwd=place)
        jobs = [start_dlunet(verb, *words, many, f"shard={shard}", cwd=place) for shard in SHARDS]
        printed = [job.communicate(timeout=300) for job in jobs]
        assert [job.returncode for job in jobs] == [0] * COUNT, printed
        one, many = (place / word.partition("=")[2] for word in (one, many))
        assert files_of(many) == files_of(one)
        return printed

    compare("prepare", "data.prepared=prepared", "data.prepared=prepared_in_shards", *PREPARE)
    predict = (f"checkpoint={checkpoint}", f"input={UNLABELLED}", "volumes=true")
    compare("predict", "output=labels", "output=labels_in_shards", *predict)
    scored = ("predictions=labels_in_shards", "references=labels", "metrics=[hd95]")
    printed = compare("evaluate", "output=scores", "output=scores_in_shards", *scored)
    assert sum("scores: scores_in_shards" in out for out, _ in printed) == 1


def test_what_cannot_be_a_shard_is_refused(place, dlunet):
    words = (f"input={UNLABELLED}", "output=new", "checkpoint=none.ckpt")
    output = dlunet("predict", *words, "shard=4/3", cwd=place, fails=True)
    assert "shard: found 4/3; expected K/N, the K-th of N shards, such as 2/8" in output.stderr
    output = dlunet("predict", *words, "shard=1/3", "report=true", cwd=place, fails=True)
    assert "rerun the command without shard" in output.stderr
    scored = (f"predictions={UNLABELLED}", f"references={UNLABELLED}", "output=new", "shard=1/2")
    output = dlunet("evaluate", *scored, cwd=place, fails=True)
    assert "add labels=dataset.json or labels=flare22" in output.stderr
    assert not (place / "new").exists()


# Preparation.


def prepare(root, folder, shard=ALL, spacing=(8.0, 8.0, 8.0)):
    return prepare_dataset(read_flare22(root), folder, spacing, (8, 16, 16), workers=1, shard=shard)


def prepare_slowly(root, folder, shard, begun, may_go_on):
    """Say when the first case has begun, and wait in the middle of it."""

    def read(*arguments):
        begun.set()
        assert may_go_on.wait(TIMEOUT)
        return read_case(*arguments)

    with patch("dlunet.preparation.prepare.read_case", read):
        prepare(root, folder, shard)


def test_a_shard_prepares_its_cases_only(tiny_root, tmp_path):
    prepared = [prepare(tiny_root, tmp_path, shard) for shard in SHARDS]
    parts = ("labelled", "unlabelled", "validation")
    names = [case.name for part in parts for each in prepared for case in getattr(each, part)]
    assert len(names) == len({*names}) == 8
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    prepare(tiny_root, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before


def test_shards_are_prepared_at_the_same_time(tiny_root, tmp_path):
    """A job begins and ends while another one, which had outdated cases to remove, is in the middle of a case."""
    folder, begun, may_go_on = tmp_path / "prepared", forking().Event(), forking().Event()
    prepare(tiny_root, folder, spacing=(9.0, 8.0, 8.0))
    slow = forking().Process(target=prepare_slowly, args=(tiny_root, folder, SHARDS[0], begun, may_go_on))
    slow.start()
    assert begun.wait(TIMEOUT)
    for shard in SHARDS[1:]:
        prepare(tiny_root, folder, shard)
    assert slow.is_alive()
    may_go_on.set()
    slow.join(TIMEOUT)
    assert slow.exitcode == 0
    prepare(tiny_root, tmp_path / "anew")
    assert files_of(folder) == files_of(tmp_path / "anew")


def test_jobs_with_the_same_shard_do_no_harm(place, start_dlunet):
    words = ("prepare", *PREPARE, "data.prepared=prepared_twice", "shard=1/2")
    jobs = [start_dlunet(*words, cwd=place) for _ in range(2)]
    printed = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], printed
    assert len(list((place / "prepared_twice").glob("*/*labelled/*"))) == 4


def test_outdated_cases_of_all_shards_go_first(tiny_flare22, write_volume, tmp_path):
    root, folder = tiny_flare22(tmp_path / "flare22"), tmp_path / "prepared"
    prepare(root, folder)
    changed = sorted((root / "Training" / "FLARE22_UnlabeledCase1-1000").iterdir())
    hu = np.random.default_rng(0).integers(-900, 900, (16, 20, 20)).astype(np.int16)
    for path in changed:
        write_volume(path, hu, spacing=(4.0, 4.0, 4.0), orientation="RAS")
    prepare(root, folder, SHARDS[0])
    left = sorted(path.name for path in (folder / "unlabelled").iterdir() if not path.name.startswith("."))
    assert 0 < len(left) < len(changed)
    for shard in SHARDS[1:]:
        prepare(root, folder, shard)
    prepare(root, tmp_path / "anew")
    assert files_of(folder) == files_of(tmp_path / "anew")


# Evaluation.


def label_map(seed):
    return np.random.default_rng(seed).integers(0, 14, SHAPE, dtype=np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Five references with predictions."""
    grid = Geometry(SHAPE[::-1], (1.0, 1.5, 2.5), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    for seed, name in enumerate("abcde"):
        write_labels(label_map(seed), tmp_path / "references" / f"{name}.nii.gz", grid)
        write_labels(label_map(seed // 2), tmp_path / "predictions" / f"{name}.nii.gz", grid)
    return tmp_path


def score(folders, shard, labels=FLARE22, metrics=()):
    places = (folders / name for name in ("predictions", "references", "scores"))
    return evaluate_shard(*places, labels, shard, find_metrics(metrics), workers=1)


def files_of_one_job(folders, metrics=()):
    places = (folders / name for name in ("predictions", "references", "one"))
    evaluate_folder(*places, FLARE22, workers=1, metrics=find_metrics(metrics))
    return files_of(folders / "one")


@pytest.mark.parametrize("count", [2, 7])
def test_the_last_shard_writes_the_tables(folders, count):
    shards = [Shard(number, count) for number in range(1, count + 1)]
    found = [score(folders, shard, metrics=["hd95"]) for shard in reversed(shards)]
    assert [scores is None for scores in found] == [True] * (count - 1) + [False]
    assert list(found[-1]["case"].unique()) == list("abcde")
    assert files_of(folders / "scores") == files_of_one_job(folders, ["hd95"])


def test_scores_of_changed_label_maps_or_other_settings_are_not_used(folders, capfd):
    assert score(folders, SHARDS[0]) is None
    assert score(folders, SHARDS[1], metrics=["hd95"]) is None  # other columns
    assert score(folders, SHARDS[1]) is None
    shutil.copy(folders / "references" / "a.nii.gz", folders / "predictions" / "a.nii.gz")  # the first case of shard 1
    assert score(folders, SHARDS[2]) is not None  # the same contents
    shutil.copy(folders / "references" / "b.nii.gz", folders / "predictions" / "b.nii.gz")
    for shard in SHARDS[:2]:
        capfd.readouterr()
        assert score(folders, shard) is None
        assert "scores.csv is of before, until all shards are repeated" in " ".join(capfd.readouterr().err.split())
    shutil.copy(folders / "references" / "d.nii.gz", folders / "predictions" / "d.nii.gz")  # of shard 1, after it
    capfd.readouterr()
    assert score(folders, SHARDS[2]) is None
    assert "missing: 1/3" in capfd.readouterr().err
    assert score(folders, SHARDS[0]) is not None
    assert files_of(folders / "scores") == files_of_one_job(folders)


@pytest.mark.parametrize("readable", [True, False])
def test_label_maps_that_are_replaced_while_they_are_read(folders, monkeypatch, capfd, readable):
    """Their scores are not used, whether or not there was one when the shard began."""
    new = shutil.copy(folders / "references" / "b.nii.gz", folders / "new.nii.gz")
    prediction = folders / "predictions" / "b.nii.gz"

    def score_and_replace(*arguments):
        if not readable:
            shutil.copy(new, prediction)
        scored = score_pairs(*arguments)
        shutil.copy(new, prediction)
        return scored

    with monkeypatch.context() as patch:
        patch.setattr("dlunet.evaluation.shards.score_pairs", score_and_replace)
        if not readable:
            patch.setattr("dlunet.stamps.stamp", unreadable)
        score(folders, SHARDS[1])
    score(folders, SHARDS[0])
    capfd.readouterr()
    assert score(folders, SHARDS[2]) is None
    assert "missing: 2/3" in capfd.readouterr().err
    score(folders, SHARDS[1])
    assert files_of(folders / "scores") == files_of_one_job(folders)


def unreadable(paths):
    raise OSError


def test_a_case_that_cannot_be_scored(folders):
    (folders / "predictions" / "b.nii.gz").write_bytes(b"no label map")
    assert score(folders, SHARDS[0]) is None
    with pytest.raises(SomeCasesFailed, match="1 of 2 cases could not be scored"):
        score(folders, SHARDS[1])
    with pytest.raises(
        SomeCasesFailed, match=r"1 of 5 cases could not be scored \(the other 4 are in .*(.|\n)*b\.nii\.gz"
    ):
        score(folders, SHARDS[2])  # it has scored all of its own, but the tables are without that of another shard
    with pytest.raises(SomeCasesFailed):
        files_of_one_job(folders)
    written = {name: text for name, text in files_of(folders / "scores").items() if not name.startswith(".shard-")}
    assert written == files_of(folders / "one")
    shutil.copy(folders / "references" / "b.nii.gz", folders / "predictions" / "b.nii.gz")
    assert list(score(folders, SHARDS[1])["case"].unique()) == list("abcde")  # the others are not repeated
    assert files_of(folders / "scores") == files_of_one_job(folders)


def test_no_case_of_any_shard_can_be_scored(folders):
    for prediction in (folders / "predictions").iterdir():
        prediction.write_bytes(b"no label map")
    for shard, count in zip(SHARDS, (2, 2, 5), strict=True):
        with pytest.raises(
            UserError, match=rf"{count} of {count} cases could not be scored \(no other case was scored"
        ):
            score(folders, shard)
    assert not (folders / "scores" / "scores.csv").exists()


def test_a_damaged_part_counts_as_missing(folders):
    for shard in SHARDS[:2]:
        score(folders, shard)
    parts = sorted((folders / "scores").glob(".shard-*"))
    assert len(parts) == 2
    parts[0].write_text(json.dumps({"settings": 3}))
    assert score(folders, SHARDS[2]) is None
    with pytest.raises(UserError, match="no such"):
        evaluate_shard(folders / "none", folders / "references", folders / "scores", FLARE22, SHARDS[0], {}, 1)
