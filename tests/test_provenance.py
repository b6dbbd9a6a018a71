"""What is recorded of the code, in a repository of its own."""

import subprocess

import pytest

from dlunet import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package and results, committed."""
    for file in ("dlunet/provenance.py", "benchmarks/results/speed.json", "experiments/some/results/some.csv"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    author = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "all")):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "dlunet" / "provenance.py"))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "modified"),
    [
        ("dlunet/provenance.py", True),
        ("conf/train.yaml", True),
        ("experiments/some/results.py", True),
        ("experiments/some/results/some.csv", False),
        ("experiments/some/results/new.csv", False),
        ("benchmarks/results/speed.json", False),
    ],
)
def test_changed_results_do_not_count_as_changed_code(checkout, file, modified):
    assert provenance.provenance()["git"]["modified"] is False
    (checkout / file).parent.mkdir(exist_ok=True)
    (checkout / file).write_text("changed")
    assert provenance.provenance()["git"]["modified"] is modified
