"""Rounds of self-training: the cases on which two rounds agree, and a table of all rounds.

As in Huang et al. 2022, "Revisiting nnU-Net for Iterative Pseudo Labeling and Efficient Sliding Window Inference", the
method that won FLARE22: pseudo-labels are predicted again in each round, and only reliable ones are trained on.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dlunet import stamps
from dlunet.errors import UserError
from dlunet.evaluation.agreement import agreement_of_files
from dlunet.files import remove_leftovers, whole, write_text
from dlunet.inference.case_tables import read_case_table, write_case_table
from dlunet.labels import LabelSet
from dlunet.parallel import for_each_case
from dlunet.run_layout import KeptLayout, RunLayout, ScoresLayout
from dlunet.volumes import list_volumes

if TYPE_CHECKING:
    import pandas as pd

#: Decimals of the agreements and scores in tables.
DECIMALS = 4

#: The values of the column ``kept``.
KEPT, DROPPED = "yes", "no"


def keep_agreeing(
    before: Mapping[str, Path | None],
    now: Mapping[str, Path | None],
    folder: Path,
    labels: LabelSet,
    least: float,
    workers: int | None = None,
) -> int:
    """Copy the label maps on which two rounds agree into a folder, and say in a table what was kept and why.

    The folder appears complete or not at all. It is kept if it was made from the same label maps with the same
    ``least`` and is still complete, and replaced otherwise. A case in which neither round finds any class is dropped,
    and one that a round has no label map of.

    Args:
        before: The label maps of the earlier round, by case; None for a case that it could not label.
        now: Those of the later round, by the same cases; these are copied.
        folder: Destination of the label maps and of ``kept.csv`` (columns ``case,agreement,kept,reason``).
        labels: The classes.
        least: The lowest agreement, 0 … 1, of a case that is kept, see :func:`dlunet.evaluation.agreement`.
        workers: Processes; by default one per core.

    Returns:
        The number of kept cases.

    Raises:
        UserError: No case is kept, but the table is written; or a label map cannot be read.
        WriteError: The folder cannot be written.
    """
    layout, files = KeptLayout(folder), [file for file in (*before.values(), *now.values()) if file is not None]
    if not (_is_up_to_date(layout, least, files) and _is_complete(layout, now)):
        record = json.dumps({"agreement": least, "files": stamps.stamp_if_readable(files)})
        pairs = {case: (one, other) for case, other in now.items() if (one := before[case]) and other}
        agreements = _agreements(pairs, labels, workers)
        rows = {case: _row(case, agreements.get(case), least) for case in now}
        remove_leftovers(folder.parent)
        with whole(folder) as temporary:
            temporary.mkdir()
            for case in _kept(rows):
                file = pairs[case][1]
                shutil.copyfile(file, temporary / file.name)
            unfinished = KeptLayout(temporary)
            write_case_table(unfinished.table, rows)
            write_text(unfinished.record, record)
            layout.record.unlink(missing_ok=True)  # first, so that a folder that is half removed is not up to date
            shutil.rmtree(folder, ignore_errors=True)
    rows = read_case_table(layout.table)
    if not _kept(rows):
        raise UserError(_none_kept(layout.table, rows, least))
    return len(_kept(rows))


def summarize_rounds(configs: Sequence[DictConfig], table: Path) -> pd.DataFrame:
    """Write one row per round to a table.

    Args:
        configs: The configs of the finished trainings: the teacher's, which is round 0, and those of the students.
        table: The CSV file.

    Returns:
        Columns ``round,experiment,network,pseudo_labelled,val_dsc,test_dsc``: the name of the run, the kind of its
        network, the number of pseudo-labels it was trained with, its best DSC on the prepared validation cases and, if
        ``test`` is set, the mean DSC in its ``scores``. A value that does not exist is empty.
    """
    import pandas as pd

    rows = [_round_row(number, config) for number, config in enumerate(configs)]
    summary = pd.DataFrame(rows).round(DECIMALS)
    remove_leftovers(table.parent)
    write_text(table, summary.to_csv(index=False))
    return summary


def _is_up_to_date(layout: KeptLayout, least: float, files: Sequence[Path]) -> bool:
    """Whether the folder was made from these label maps with this lowest agreement."""
    try:
        record = json.loads(layout.record.read_text())
        return record["agreement"] == least and stamps.follow(record["files"], files) is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_complete(layout: KeptLayout, now: Mapping[str, Path | None]) -> bool:
    """Whether there is a table of these cases, and the label map of each case that it says is kept."""
    try:
        rows = read_case_table(layout.table)
    except UserError:
        return False
    files = [now.get(case) for case in _kept(rows)]
    return rows.keys() == now.keys() and all(file is not None and (layout.path / file.name).exists() for file in files)


def _agreements(pairs: Mapping[str, tuple[Path, Path]], labels: LabelSet, workers: int | None) -> dict[str, float]:
    """The agreement of each case, rounded as in the table; NaN where neither round finds any class."""
    cases = {pair: case for case, pair in pairs.items()}
    found: dict[str, float] = {}
    compare = partial(agreement_of_files, labels=labels)
    for pair, outcome in for_each_case("comparing", compare, list(cases), workers):
        if isinstance(outcome, UserError):
            raise outcome
        found[cases[pair]] = round(outcome, DECIMALS)
    return found


def _row(case: str, value: float | None, least: float) -> dict[str, str]:
    """A row of the table; without a value, there were no two label maps to compare."""
    if value is None or math.isnan(value):
        reason = "not labelled in both rounds" if value is None else "neither round finds any class"
        return {"case": case, "agreement": "", "kept": DROPPED, "reason": reason}
    if value < least:
        return {"case": case, "agreement": f"{value}", "kept": DROPPED, "reason": f"agreement below {least}"}
    return {"case": case, "agreement": f"{value}", "kept": KEPT, "reason": f"agreement of at least {least}"}


def _kept(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [case for case, row in rows.items() if row["kept"] == KEPT]


def _none_kept(table: Path, rows: Mapping[str, Mapping[str, str]], least: float) -> str:
    values = [float(row["agreement"]) for row in rows.values() if row["agreement"]]
    reasons = Counter(row["reason"] for row in rows.values())
    found = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
    if values:
        found = f"two rounds agree on them by {min(values)} to {max(values)}, median {median(values):.{DECIMALS}g}"
    return (
        f"{table}: none of the {len(rows)} unlabelled cases is kept: {found}; expected at least one case with "
        f"agreement={least}; lower agreement, or train longer in another folder (trainer.max_epochs=…, output=FOLDER)"
    )


def _round_row(number: int, config: DictConfig) -> dict[str, str | int | float]:
    import pandas as pd

    run = RunLayout(Path(config.output))
    metrics = pd.read_csv(run.metrics)
    return {
        "round": number,
        "experiment": config.name,
        "network": config.network.kind,
        "pseudo_labelled": len(list_volumes(Path(config.data.pseudo_labels))) if number else 0,
        "val_dsc": metrics["val/dsc"].max() if "val/dsc" in metrics else math.nan,
        "test_dsc": pd.read_csv(ScoresLayout(run.scores).summary)["dsc_mean"].iloc[-1] if config.test else math.nan,
    }
