"""The code blocks of docs/python.md run one after the other in a folder with FLARE22's layout."""

import re
from contextlib import chdir
from pathlib import Path

import pandas as pd

from tests.commands import as_a_new_process

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_blocks_run(tiny_flare22, tmp_path):
    tiny_flare22(tmp_path / "flare22")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    with as_a_new_process(), chdir(tmp_path):
        exec(compile("\n".join(blocks), PAGE, "exec"), {"__name__": "__main__"})
    assert (tmp_path / "run" / "scores" / "summary.csv").is_file()
    assert (tmp_path / "report" / "index.html").is_file()
    assert "hd95" in pd.read_csv(tmp_path / "scores" / "scores.csv").columns
