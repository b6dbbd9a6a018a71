"""Tables of cases: CSV files with a row for each case, whose values are texts."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from dlunet.errors import UserError
from dlunet.files import write_text


def read_case_table(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV file by their column ``case``; none where there is no such file.

    Raises:
        UserError: It is another kind of file.
    """
    if not path.exists():
        return {}
    import pandas as pd  # only here: training does without its 30 MB

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)  # a case may be called 0001 or NA
    except ValueError as error:  # pandas' own errors are such, and those of an encoding
        reason = str(error).strip()
        raise UserError(f"{path}: is damaged ({reason}); expected the table of an earlier run; move it away") from None
    rows = cast("list[dict[str, str]]", table.to_dict("records"))
    # Where rows have more values than there are columns, pandas takes the first ones for names of the rows.
    if not isinstance(table.index, pd.RangeIndex) or not all(row.get("case") for row in rows):
        raise UserError(f"{path}: has rows without a 'case'; expected the table of an earlier run; move it away")
    return {row["case"]: row for row in rows}


def write_case_table(path: Path, rows: dict[str, dict[str, str]]) -> None:
    """Write rows, each of which has a ``case``, as a CSV file with all their columns."""
    import pandas as pd

    write_text(path, pd.DataFrame(list(rows.values())).to_csv(index=False))
