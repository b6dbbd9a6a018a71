"""Score a folder of label maps and write the score tables."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlunet.errors import SomeCasesFailed, UserError
from dlunet.evaluation.metrics import ALWAYS, Metric, write_metrics
from dlunet.evaluation.pairs import Pair, Rows, match_pairs, message_console, score_pairs
from dlunet.evaluation.summary import summarize_scores
from dlunet.files import write_text
from dlunet.labels import FLARE22, LabelSet, label_set
from dlunet.parallel import for_each_case
from dlunet.run_layout import ScoresLayout
from dlunet.volumes import count_labels, read_labels

if TYPE_CHECKING:
    import pandas as pd

#: Label maps with unknown classes count as FLARE22's if at least this many of its 13 ids occur and this id is largest.
LEAST_OF_FLARE22, LIVER = 10, 1


def evaluate_folder(
    predictions: Path,
    references: Path | Mapping[str, Path],
    output: Path,
    labels: LabelSet | None = FLARE22,
    workers: int | None = None,
    metrics: Mapping[str, Metric] | None = None,
    part: str | None = None,
) -> pd.DataFrame:
    """Score the prediction for every reference by FLARE22's rules (:func:`dlunet.evaluation.score_case`).

    Writes to ``output``, each file atomically: ``scores.csv`` (columns ``case,organ,dsc,nsd`` and further metrics, one
    row per case and class), ``summary.csv`` (:func:`summarize_scores`), ``metrics.json`` (the meaning of the columns),
    ``references.json`` (the reference label maps) and, if known, ``part.txt`` (the part of the dataset). Files are
    matched by case name, the file name without its extension and, where the names differ in it, ``_0000``. Cases are
    scored in parallel processes.

    Args:
        predictions: Folder of predicted label maps. A prediction without a reference is skipped with a warning.
        references: Folder of reference label maps on the same grids, or the label maps by case name.
        output: Folder for the tables; created if missing.
        labels: The classes; None if unknown, then those that occur are scored, see :func:`occurring_labels`.
        workers: Number of processes; by default one per CPU core that this process may use.
        metrics: Metrics in addition to DSC and NSD, by column name (:func:`dlunet.evaluation.find_metrics`).
        part: The part of the dataset that is scored, ``test`` or ``validation``; None if unknown.

    Returns:
        The rows of ``scores.csv``.

    Raises:
        SomeCasesFailed: A case cannot be read, or its grids differ; all other cases are scored and written first.
        UserError: A folder is missing or has no volumes, a reference has no prediction, or no case can be scored.
    """
    console = message_console()
    pairs = match_pairs(predictions, references, console)
    shown = None
    if labels is None:
        labels, shown = occurring_labels(pairs, workers)
        console.print(_describe_labels(labels, shown))
    make_folder(output)
    metrics = metrics or {}
    rows, failures = score_pairs(pairs, labels, metrics, shown, workers, console)
    scores = write_tables(rows, pairs, output, labels, metrics, shown, part)
    if failures:
        done = f"the other {len(rows)} are in {ScoresLayout(output).table}"
        raise failure(failures, len(rows), done)
    return scores


def write_tables(
    rows: Mapping[str, Rows],
    pairs: Sequence[Pair],
    output: Path,
    labels: LabelSet,
    metrics: Mapping[str, Metric],
    shown: Container[str] | None = None,
    part: str | None = None,
) -> pd.DataFrame:
    """Write the tables of :func:`evaluate_folder`, if there are any rows, and return those of ``scores.csv``."""
    import pandas as pd  # not at the top: the processes that score, and training, need neither its seconds nor memory

    scored = [pair for pair in pairs if pair.case in rows]
    scores = pd.DataFrame(
        [(pair.case, *row) for pair in scored for row in rows[pair.case]],
        columns=["case", "organ", *ALWAYS, *metrics],
    )
    if len(scores):
        layout = ScoresLayout(output)
        if part is None:
            layout.part_of_dataset.unlink(missing_ok=True)  # of earlier scores
        else:
            write_text(layout.part_of_dataset, f"{part}\n")  # first: no scores are without it
        write_text(layout.table, scores.to_csv(index=False))
        write_text(layout.summary, summarize_scores(scores, labels, shown).to_csv(index=False))
        write_metrics({**ALWAYS, **metrics}, output)
        references = {pair.case: str(pair.reference.resolve()) for pair in scored}
        write_text(layout.references, json.dumps(references, indent=2))
    return scores


def occurring_labels(pairs: Sequence[Pair], workers: int | None = None) -> tuple[LabelSet, set[str] | None]:
    """Infer the classes of label maps without a description from the ids that occur in them.

    Label maps that look like FLARE22's 13 organs are treated as such. Otherwise classes are named by their ids, and
    ids that do not occur are excluded: a class absent from all maps would score as found everywhere.

    Returns:
        The classes and the names of those that occur; None instead of names for FLARE22, whose organs all count.

    Raises:
        UserError: No label map can be read, or none contains a class.
    """
    counts, failures = np.zeros(256, np.int64), []
    for _, found in for_each_case("looking for labels", _count_labels, pairs, workers):
        if isinstance(found, UserError):  # reported again by the scoring, if anything is scored
            failures.append(str(found))
        else:
            counts += found
    ids = [int(id_) for id_ in np.flatnonzero(counts) if id_]
    if not ids:
        nothing = (
            f"{pairs[0].prediction.parent}: neither label maps nor references contain a class; expected labels above 0"
        )
        raise UserError("\n".join(failures) or nothing)
    if _looks_like_flare22(counts):
        return FLARE22, None
    labels = label_set("unknown", {id_: f"label {id_}" for id_ in range(1, ids[-1] + 1)})
    return labels, {label.name for label in labels if label.id in ids}


def _looks_like_flare22(counts: np.ndarray) -> bool:
    """Whether 13 is the highest id, most others occur, and id 1 is the largest structure, as the liver is."""
    occurring = np.flatnonzero(counts[1:]) + 1
    return bool(
        occurring[-1] == len(FLARE22) and len(occurring) >= LEAST_OF_FLARE22 and np.argmax(counts[1:]) + 1 == LIVER
    )


def _count_labels(pair: Pair) -> np.ndarray:
    """Number of voxels of each value from 0 to 255, in prediction and reference together."""
    prediction, reference = (count_labels(read_labels(path).array, 256) for path in (pair.prediction, pair.reference))
    return prediction + reference


def _describe_labels(labels: LabelSet, shown: set[str] | None) -> str:
    if shown is None:
        return "found labels up to 13: scored as FLARE22's organs; set labels=dataset.json if they are other classes"
    found = ", ".join(label.name for label in labels if label.name in shown) or "none"
    return (
        f"found {found}; their names are unknown: labels=dataset.json names them, labels=flare22 takes them as "
        "FLARE22's"
    )


def make_folder(folder: Path) -> None:
    """Make the output folder.

    Raises:
        UserError: It cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot create directory ({error.strerror}); choose another output") from None


def failure(failures: Mapping[str, str], scored: int, done: str) -> UserError:
    """The error about cases that could not be scored.

    Args:
        failures: A message for each of them.
        scored: The number of the other cases.
        done: Where their scores are.
    """
    kind = SomeCasesFailed if scored else UserError
    lines = "\n".join(f"  {message}" for _, message in sorted(failures.items()))
    others = done if scored else "no other case was scored"
    return kind(f"{len(failures)} of {len(failures) + scored} cases could not be scored ({others}):\n{lines}")
