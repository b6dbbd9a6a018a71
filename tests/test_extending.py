"""docs/extending.md, followed as a user does: its files in a folder outside the package, its commands in order."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
TAKEN_NAME = """from dlunet.evaluation import register_metric

@register_metric("HD", False)
def hd95(prediction, reference, spacing):
    return 0
"""
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tiny_abdomen, write_volume, tmp_path):
    """A folder with CTs of two structures, some with label maps, and the page's plug-ins."""
    for seed in range(9):
        abdomen = tiny_abdomen(seed)
        labels = np.where(abdomen.labels <= 2, abdomen.labels, 0).astype(np.uint8)
        name = f"ct{seed}" if seed else "new"
        write_volume(tmp_path / "cts" / f"{name}.nii.gz", abdomen.hu, spacing=abdomen.spacing)
        if seed > 3:
            write_volume(tmp_path / "cts" / f"{name}_seg.nii.gz", labels, spacing=abdomen.spacing)
        if seed == 0:
            write_volume(tmp_path / "references" / "new.nii.gz", labels, spacing=abdomen.spacing)
    for name, text in re.findall(r"^`(plugins/\S+)`\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_page_works_as_it_stands(place, dlunet, dlunet_process):
    """Each command runs in a new process, imports the plug-ins and registers them; without them, it reports that."""
    commands = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 4 and len(list(place.glob("plugins/**/*.*"))) == 8
    printed = {}
    for command in commands:
        program, *words = shlex.split(command)
        assert program == ("python" if words[0].endswith(".py") else "dlunet")
        printed[words[0]] = dlunet_process(*words, cwd=place).all
    assert "engine: channels_last on cpu" in printed["predict.py"]
    steps = pd.read_csv(place / "run" / "metrics.csv")
    assert steps["train/consistency_a"].notna().any()
    scores = pd.read_csv(place / "run" / "scores" / "scores.csv")
    assert list(scores.columns) == ["case", "organ", "dsc", "nsd", "volume_error", "hd95"]
    assert "mean Volume error [%]" in printed["report"] and "mean HD95 [mm]" in printed["report"]
    assert "Volume error [%] per class" in (place / "report" / "index.html").read_text()
    words = ("checkpoint=run/checkpoints/best.ckpt", "input=cts/new.nii.gz", "output=x")
    printed = dlunet("predict", *words, cwd=place, fails=True)
    assert "SegResNet" in printed.stderr and "--config-dir=FOLDER" in printed.stderr


def test_what_is_not_there_is_named(tmp_path, dlunet):
    words = ("--config-dir", "nowhere", "checkpoint=x", "input=x", "output=x")
    printed = dlunet("predict", *words, cwd=tmp_path, fails=True)
    assert "--config-dir: found no folder nowhere" in printed.stderr
    words = ("predictions=labels", "references=references", "metrics=[wrong]", "output=y")
    printed = dlunet("evaluate", *words, cwd=tmp_path, fails=True)
    assert "metrics: found wrong; expected one or more of hd95" in printed.stderr


def test_a_file_that_has_the_name_of_another_module_is_refused(tmp_path, dlunet):
    (tmp_path / "json.py").write_text("")
    words = (f"--config-dir={tmp_path}", "predictions=x", "references=x", "output=y")
    printed = dlunet("evaluate", *words, cwd=tmp_path, fails=True)
    assert "json.py" in printed.stderr and "choose another file name" in printed.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef (", "SyntaxError in line 2"),
        ("x = 1\n\nimport not_there_at_all", "ModuleNotFoundError in line 3: No module named 'not_there_at_all'"),
        (TAKEN_NAME, "ValueError in line 3: there is already a metric hd95"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named(text, message, tmp_path, dlunet):
    (tmp_path / "broken_plug_in.py").write_text(text)
    words = (f"--config-dir={tmp_path}", "predictions=x", "references=x", "output=y")
    printed = dlunet("evaluate", *words, cwd=tmp_path, fails=True)
    assert f"broken_plug_in.py: cannot be imported ({message}" in printed.stderr
