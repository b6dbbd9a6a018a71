"""Several runs sharing a folder of prepared cases: each gets exactly its cases, or an error that it is in use."""

import errno
import os
import shutil
import threading

import numpy as np
import pytest

from dlunet.datasets import read_folders, with_pseudo_labels
from dlunet.errors import UserError
from dlunet.preparation import SharedFolder, prepare_dataset
from dlunet.shards import ALL, Shard

SPACING, PATCH = (10.0, 8.0, 6.0), (16, 32, 32)
GRID = {"spacing": (8.0, 8.0, 8.0)}
SHARD = Shard(1, 2)


@pytest.fixture
def root(tmp_path, write_volume, tiny_abdomen):
    """Five labelled cases and two unlabelled ones, in plain folders."""
    for seed in range(7):
        abdomen = tiny_abdomen(seed)
        write_volume(tmp_path / "mine" / "images" / f"{seed}.nii.gz", abdomen.hu, **GRID)
        if seed < 5:
            labels = np.minimum(abdomen.labels, 3)
            write_volume(tmp_path / "mine" / "labels" / f"{seed}.nii.gz", labels, **GRID)
    return tmp_path / "mine"


def dataset(root, fold=0):
    return read_folders(root, ["a", "b", "c"], root.parent / "splits.json", fold=fold)


def prepare(root, fold=0, shared=None, pseudo_labels=None, **settings):
    cases = dataset(root, fold)
    if pseudo_labels is not None:
        cases = with_pseudo_labels(cases, pseudo_labels)
    return prepare_dataset(cases, root.parent / "prepared", SPACING, PATCH, workers=1, shared=shared, **settings)


def written(root):
    return {path: path.stat().st_mtime_ns for path in (root.parent / "prepared").rglob("case.json")}


def names(prepared):
    return [[case.name for case in part] for part in (prepared.labelled, prepared.unlabelled, prepared.validation)]


def test_folds_share_cases_and_statistics(root):
    whole = prepare(root, "all")
    before = written(root)
    for fold in range(5):
        prepared = prepare(root, fold)
        assert prepared.plan == whole.plan
        assert names(prepared) == names_of(dataset(root, fold))
    assert written(root) == before


def names_of(cases):
    return [[case.name for case in part] for part in (cases.labelled, cases.unlabelled, cases.validation)]


def change_a_label(root, write_volume):
    """Changed labels change the statistics, so that every case has to be prepared again."""
    write_volume(root / "labels" / "0.nii.gz", np.full((24, 40, 40), 3, np.uint8), **GRID)


def test_cases_that_are_in_use_are_not_replaced(root, write_volume):
    shared = SharedFolder(root.parent / "prepared")
    reading = prepare(root, shared=shared)
    before = written(root)
    assert prepare(root, "all").plan == reading.plan  # the same cases: no reason to wait
    change_a_label(root, write_volume)
    with pytest.raises(
        UserError, match=r"prepared: is in use by another run, and 7 of its cases.*data\.prepared=FOLDER"
    ):
        prepare(root, "all")
    assert written(root) == before
    shared.close()
    assert prepare(root, "all").plan != reading.plan
    assert all(time > before[path] for path, time in written(root).items())


@pytest.mark.parametrize("damaged", ["images", "teacher"])
def test_a_case_that_broke_is_left_out_by_all_processes_of_a_run(root, damaged):
    """Each of them prepares in turn, and reads from then on."""
    pseudo_labels = teach(root, "teacher", 1)
    prepare(root, pseudo_labels=pseudo_labels)
    next(root.parent.rglob(f"{damaged}/6.nii.gz")).write_text("not a volume")
    processes = [SharedFolder(root.parent / "prepared") for _ in range(2)]
    found = [names(prepare(root, shared=shared, pseudo_labels=pseudo_labels)) for shared in processes]
    assert found[0] == found[1] == [["1", "2", "3", "4"], ["5"], ["0"]]
    for shared in processes:
        shared.close()


def test_cases_can_be_added_while_others_are_read(root, write_volume, tiny_abdomen):
    shared = SharedFolder(root.parent / "prepared")
    prepare(root, shared=shared)
    write_volume(root / "images" / "7.nii.gz", tiny_abdomen(7).hu, **GRID)
    assert names(prepare(root))[1] == ["5", "6", "7"]
    shared.close()


@pytest.mark.parametrize(("first", "second"), [(ALL, ALL), (ALL, SHARD), (SHARD, ALL)], ids=str)
def test_a_run_waits_for_one_that_prepares(root, caplog, first, second):
    caplog.set_level("INFO")
    done = []
    shared = SharedFolder(root.parent / "prepared")
    with shared.preparing(alone=first.is_all):
        if not first.is_all:
            shared.let_others_prepare()
        waiting = threading.Thread(target=lambda: done.append(prepare(root, shard=second)))
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive() and not written(root)
        assert "another run is preparing cases; waiting" in caplog.text
    waiting.join(60)
    shared.close()
    cases = {case for part in names_of(dataset(root)) for case in part}
    prepared = {case for part in names(done[0]) for case in part}
    assert prepared == cases if second.is_all else prepared < cases


def test_shards_do_not_replace_what_another_one_may_have_prepared(root, write_volume):
    prepare(root)
    before = written(root)
    shared = SharedFolder(root.parent / "prepared")
    with shared.preparing(alone=False):
        shared.let_others_prepare()
        prepare(root, shard=SHARD)  # nothing to do
        change_a_label(root, write_volume)
        with pytest.raises(UserError, match=r"prepared: is in use by another run, and 7 of its cases"):
            prepare(root, shard=SHARD)
    assert written(root) == before
    shared.close()
    prepare(root, shard=SHARD)
    assert not written(root).items() & before.items()


def teach(root, teacher, source):
    """A folder with pseudo-labels of both unlabelled cases, the labels of a labelled one."""
    folder = root.parent / teacher
    folder.mkdir()
    for case in (5, 6):
        shutil.copy(root / "labels" / f"{source}.nii.gz", folder / f"{case}.nii.gz")
    return folder


def test_students_of_different_teachers_train_at_the_same_time(root):
    """Pseudo-labels determine where to crop: other ones change neither the prepared CTs nor each other."""
    folders = [teach(root, "by_one", 0), teach(root, "by_another", 1)]
    shared = SharedFolder(root.parent / "prepared")
    one = prepare(root, shared=shared, pseudo_labels=folders[0])
    before = written(root)
    another = prepare(root, pseudo_labels=folders[1])
    assert {path: time for path, time in written(root).items() if path in before} == before
    for case, other in zip(one.unlabelled, another.unlabelled, strict=True):
        assert case.folder == other.folder and case.label is None
        assert not np.array_equal(case.class_voxels(1), other.class_voxels(1))
    shared.close()


def test_other_intensities_leave_the_index_of_pseudo_labels_as_it_is(root, write_volume):
    """Another shard may be checking it."""
    pseudo_labels = teach(root, "teacher", 1)
    indexes = {case.index_folder / "case.json" for case in prepare(root, pseudo_labels=pseudo_labels).unlabelled}
    before = written(root)
    change_a_label(root, write_volume)
    prepare(root, pseudo_labels=pseudo_labels, shard=SHARD)
    prepare(root, pseudo_labels=pseudo_labels)
    assert {path for path, time in written(root).items() if time == before[path]} == indexes


def test_a_folder_that_is_only_to_be_read(root, monkeypatch):
    prepared = prepare(root)
    for path in (root.parent / "prepared").glob(".*"):
        path.unlink()

    def read_only(path, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr("dlunet.locks.os.open", read_only)
    assert names(prepare(root)) == names(prepared)


def test_three_commands_at_once(root, start_dlunet):
    """How the commands interleave varies, but the result of each does not."""
    words = ("data=folders", f"data.root={root}", "data.names=[a,b,c]", "data.prepared=prep", "data.workers=1")
    running = [
        start_dlunet("prepare", "scale=tiny", *words, f"data.fold={fold}", cwd=root.parent) for fold in ("all", 0, 1)
    ]
    printed = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], printed
    assert "prepared: 5 labelled, 2 unlabelled, 0 validation" in printed[0][0]
    for text, _ in printed[1:]:
        assert "prepared: 4 labelled, 2 unlabelled, 1 validation" in text
