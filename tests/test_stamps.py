"""Detection of changed files by file system attributes and, where these differ, by contents."""

import os
import shutil

import pytest

from dlunet import stamps


@pytest.fixture
def files(tmp_path):
    """Two files of equal size and modification time, and a folder."""
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "series"]
    paths[0].write_text("1234")
    paths[1].write_text("5678")
    paths[2].mkdir()
    for name in ("1", "2"):
        (paths[2] / name).write_text(name * 4)
    for path in (*paths[:2], *paths[2].iterdir()):
        os.utime(path, ns=(5, 7_000_000_000))
    return paths


def test_what_cannot_be_read_has_no_stamps(files):
    assert stamps.stamp_if_readable(files) == stamps.stamp(files)
    files[1].unlink()
    assert stamps.stamp_if_readable(files) == [] and stamps.follow([], files) is None


def test_the_same_files_are_the_same_and_are_not_read(files, monkeypatch):
    known = stamps.stamp(files)
    monkeypatch.setattr(stamps, "_contents", None)
    assert stamps.follow(known, files) == known


def swap(one, other):
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


def write_over(path):
    """Change the contents, but not size and modification time."""
    path.write_text("9999")
    os.utime(path, ns=(5, 7_000_000_000))


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b, series: swap(a, b),
        lambda a, b, series: write_over(a),
        lambda a, b, series: write_over(series / "2"),
        lambda a, b, series: swap(series / "1", series / "2"),
        lambda a, b, series: (series / "2").unlink(),
        lambda a, b, series: (series / "3").touch(),
        lambda a, b, series: (series / ".3").touch(),  # a hidden slice must not be overlooked
        lambda a, b, series: b.unlink(),
    ],
)
def test_other_contents_are_noticed(files, change):
    known = stamps.stamp(files)
    change(*files)
    assert stamps.follow(known, files) is None


def test_files_that_were_moved_or_touched_are_the_same(files, tmp_path):
    known = stamps.stamp(files)
    os.utime(files[0])
    shutil.copytree(tmp_path, tmp_path / "elsewhere")
    moved = [tmp_path / "elsewhere" / path.name for path in files]
    for paths in (files, moved):
        followed = stamps.follow(known, paths)
        assert followed is not None and followed != known
        assert stamps.stamp(paths) == followed


@pytest.mark.parametrize("name", [".DS_Store", "._1", ".nfs0000a1", "Thumbs.db", "desktop.ini", ".directory"])
def test_what_a_desktop_or_a_network_disk_leaves_is_no_contents(files, name):
    known = stamps.stamp(files)
    (files[2] / name).write_text("icons")
    assert stamps.follow(known, files) == known == stamps.stamp(files)
    (files[2] / name).write_text("other icons")
    assert stamps.follow(known, files) == known


@pytest.mark.parametrize("known", [None, [], {}, "text", [{}, {}, {}], [1, 2, 3]])
def test_what_is_no_stamp(files, known):
    assert stamps.follow(known, files) is None
