"""docs/extending.md as a user follows it: its files in a folder outside the package, its commands in order."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PROGRAMS = {"python": [sys.executable], "dlunet": [sys.executable, "-m", "dlunet"]}


@pytest.fixture(scope="module")
def place(tiny_abdomen, write_volume, tmp_path_factory):
    """A folder with CTs of two structures, some with label maps, and the page's plug-ins."""
    folder = tmp_path_factory.mktemp("extending")
    for seed in range(9):
        abdomen = tiny_abdomen(seed)
        labels = np.where(abdomen.labels <= 2, abdomen.labels, 0).astype(np.uint8)
        name = f"ct{seed}" if seed else "new"
        write_volume(folder / "cts" / f"{name}.nii.gz", abdomen.hu, spacing=abdomen.spacing)
        if seed > 3:
            write_volume(folder / "cts" / f"{name}_seg.nii.gz", labels, spacing=abdomen.spacing)
        if seed == 0:
            write_volume(folder / "references" / "new.nii.gz", labels, spacing=abdomen.spacing)
    for name, text in re.findall(r"^`(plugins/\S+)`\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(place, command):
    program, *words = shlex.split(command)
    words = [str(ROOT / word) if word in ("train.py", "predict.py") else word for word in words]
    done = subprocess.run(
        [*PROGRAMS[program], *words], cwd=place, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_page_works_as_it_stands(place):
    commands = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 4 and len(list(place.glob("plugins/**/*.*"))) == 8
    printed = {}
    for command in commands:
        code, printed[command.split()[1]] = run(place, command)
        assert code == 0, printed
    assert "engine: channels_last on cpu" in printed["predict.py"]
    steps = pd.read_csv(place / "run" / "metrics.csv")
    assert steps["train/consistency_a"].notna().any()
    scores = pd.read_csv(place / "run" / "scores" / "scores.csv")
    assert list(scores.columns) == ["case", "organ", "dsc", "nsd", "volume_error", "hd95"]
    assert "mean Volume error [%]" in printed["report"] and "mean HD95 [mm]" in printed["report"]
    assert "Volume error [%] by organ" in (place / "report" / "index.html").read_text()


def test_what_is_not_there_is_named(place):
    code, printed = run(place, "dlunet predict checkpoint=run/checkpoints/best.ckpt input=cts/new.nii.gz output=x")
    assert code == 1 and "SegResNet" in printed and "--config-dir=FOLDER" in printed
    code, printed = run(place, "dlunet predict --config-dir nowhere checkpoint=x input=x output=x")
    assert code == 1 and "--config-dir=nowhere: no such folder" in printed
    code, printed = run(place, "dlunet evaluate predictions=labels references=references metrics=[wrong] output=y")
    assert code == 1 and "metrics: found wrong; expected some of hd95" in printed


def test_a_file_that_has_the_name_of_another_module_is_refused(place, tmp_path):
    (tmp_path / "json.py").write_text("")
    code, printed = run(place, f"dlunet evaluate --config-dir={tmp_path} predictions=x references=x output=y")
    assert code == 1 and "json.py" in printed and "choose another file name" in printed
    assert "Traceback" not in printed
