"""Atomic writes: files appear complete or not at all."""

import os
import platform
import subprocess
import sys

import pytest

from dlunet.errors import UserError
from dlunet.files import TEMPORARY, remove_leftovers, write_text


def test_text_replaces_what_was_there_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        write_text(target, text)
        assert target.read_text() == text
    assert os.listdir(target.parent) == ["a.txt"]


@pytest.mark.parametrize("occupied", ["as a file above", "as a folder"])
def test_a_place_that_cannot_be_written(tmp_path, occupied):
    if occupied == "as a folder":
        (tmp_path / "target" / "inside").mkdir(parents=True)
    else:
        (tmp_path / "target").write_text("")
    target = tmp_path / "target" if occupied == "as a folder" else tmp_path / "target" / "a.txt"
    with pytest.raises(UserError, match=f"{target}: could not be written"):
        write_text(target, "text")
    assert os.listdir(tmp_path) == ["target"]


def test_leftovers_are_those_of_processes_that_have_ended(tmp_path):
    """Also if nobody has waited for the process, as in a container whose first process does not."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        elsewhere = [
            f".another.{ended.pid}.0123",
            f".{platform.node()}.1.{ended.pid}.0123",
        ]  # the latter in a container
        kept = [f"{TEMPORARY}{os.getpid()}.0123", *elsewhere, "a.txt"]
        for name in (f"{TEMPORARY}{ended.pid}.0123", *kept):
            (tmp_path / name).touch()
        remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
