"""Split labelled cases into training and validation folds, kept in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np

from dlunet.datasets.cases import Case, first_problem
from dlunet.errors import UserError, few
from dlunet.files import write_text

#: nnU-Net's seed: the same cases give the same folds as in nnU-Net.
SEED = 12345

Fold = int | Literal["all"]


def split_cases(
    cases: Sequence[Case], file: Path, fold: Fold = 0, folds: int = 5, problems: Sequence[str] = ()
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Training and validation cases of a fold.

    The folds are nnU-Net's, in nnU-Net's format: a list of ``{"train": [names], "val": [names]}``. The file is written
    if it does not exist and used unchanged otherwise, so that a fixed split can be written by hand.

    Args:
        cases: The labelled cases.
        file: The file of folds.
        fold: Index of the fold, from 0; ``all`` trains on every case and validates on none.
        folds: Number of folds to draw; at most one per case.
        problems: The messages about cases that were skipped, which may be why the file does not fit.

    Raises:
        UserError: The file is damaged, lists other cases or was drawn with another number of folds, or there is no such
            fold.
    """
    named = {case.name: case for case in cases}
    if len(named) < len(cases):
        raise UserError(f"{file}: found {len(cases)} labelled cases with {len(named)} names; expected unique names")
    if fold == "all" or len(cases) < 2:
        return tuple(cases), ()
    if not file.exists():
        write_text(file, json.dumps(draw_folds([case.name for case in cases], folds), indent=2))
    splits = _read(file)
    _check_number(file, splits, list(named), folds)
    if not isinstance(fold, int) or not 0 <= fold < len(splits):
        raise UserError(f"data.fold: found {fold}; expected 0 to {len(splits) - 1}, the folds in {file}, or all")
    train, val = splits[fold]["train"], splits[fold]["val"]
    strange = {
        "new": named.keys() - {*train, *val},
        "missing": {*train, *val} - named.keys(),
        "in both parts of the fold": set(train) & set(val),
    }
    if any(strange.values()):
        found = "; ".join(f"{few(sorted(names))} ({what})" for what, names in strange.items() if names)
        raise UserError(
            f"{file}: fold {fold} does not fit the labelled cases: {found}; correct the file, or delete it to draw new "
            f"folds{first_problem(problems)}"
        )
    return tuple(named[name] for name in train), tuple(named[name] for name in val)


def draw_folds(names: Sequence[str], folds: int = 5) -> list[dict[str, list[str]]]:
    """nnU-Net's folds: sorted names, shuffled with a fixed seed and split into parts whose sizes differ by at most one.

    Raises:
        UserError: Fewer than two folds are requested.
    """
    if folds < 2:
        raise UserError(f"data.folds: found {folds}; expected 2 or more, or data.fold=all for no validation")
    ordered = sorted(names)
    shuffled = np.arange(len(ordered))
    np.random.RandomState(SEED).shuffle(shuffled)
    parts = [set(part.tolist()) for part in np.array_split(shuffled, min(folds, len(ordered)))]
    return [
        {
            "train": [name for k, name in enumerate(ordered) if k not in part],
            "val": [name for k, name in enumerate(ordered) if k in part],
        }
        for part in parts
    ]


def _check_number(file: Path, splits: list[dict[str, list[str]]], names: Sequence[str], folds: int) -> None:
    """Check that folds drawn earlier are as many as now; a file written by hand may contain any number of them."""
    found = len(splits)
    if found > 1 and found != min(folds, len(names)) and splits == draw_folds(names, found):
        raise UserError(
            f"{file}: found {found} folds that were drawn earlier; expected {folds}, as data.folds says; set "
            f"data.folds={found}, or delete the file to draw new folds"
        )


def _read(file: Path) -> list[dict[str, list[str]]]:
    try:
        splits = [{part: [normalize("NFC", str(name)) for name in fold[part]] for part in ("train", "val")}
                  for fold in json.loads(file.read_text())]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{file}: cannot be read ({error}); expected a list of {{"train": [names], "val": [names]}}; correct it, '
            "or "
            "delete it to draw new folds"
        ) from None
    return splits
