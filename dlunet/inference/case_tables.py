"""Reads and writes case tables: CSV files with one row per case and all values as text."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from dlunet.errors import UserError
from dlunet.files import write_text


def read_case_table(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV file by their column ``case``; empty if the file does not exist.

    Raises:
        UserError: The file is not a case table.
    """
    if not path.exists():
        return {}
    import pandas as pd  # only here: training does without its memory

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)  # a case may be named 0001 or NA
    except ValueError as error:  # covers pandas' own errors and decoding errors
        reason = str(error).strip()
        raise UserError(f"{path}: is damaged ({reason}); expected the table of an earlier run; move it away") from None
    rows = cast("list[dict[str, str]]", table.to_dict("records"))
    # If rows have more values than there are columns, pandas uses the first values as the index.
    if not isinstance(table.index, pd.RangeIndex) or not all(row.get("case") for row in rows):
        raise UserError(f"{path}: has rows without a 'case'; expected the table of an earlier run; move it away")
    return {row["case"]: row for row in rows}


def write_case_table(path: Path, rows: dict[str, dict[str, str]]) -> None:
    """Write rows, each with a ``case``, as a CSV file with the columns of all rows."""
    import pandas as pd

    write_text(path, pd.DataFrame(list(rows.values())).to_csv(index=False))
