"""docs/python.md: its code blocks run one after the other, in a folder with FLARE22's layout."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]


def test_the_blocks_run(tiny_flare22, tmp_path):
    tiny_flare22(tmp_path / "flare22")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "scores" / "summary.csv").is_file()
    assert "hd95" in pd.read_csv(tmp_path / "scores" / "scores.csv").columns
