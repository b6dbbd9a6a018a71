"""The built-in default dataset: synthetic abdomens in FLARE22's layout, generated on first use."""

from __future__ import annotations

from pathlib import Path

from dlunet.datasets.cases import Dataset
from dlunet.datasets.flare22 import read_flare22


def open_phantoms(
    root: Path | str,
    labelled: int = 10,
    unlabelled: int = 40,
    validation: int = 4,
    test: int = 8,
    workers: int | None = None,
) -> Dataset:
    """Generate the cases missing under ``root`` and list all cases.

    Raises:
        UserError: ``root`` contains phantoms made with other arguments, or cannot be written.
    """
    from dlunet.phantom import write_phantoms

    write_phantoms(Path(root), labelled, unlabelled, validation, test, workers=workers)
    return read_flare22(Path(root))
