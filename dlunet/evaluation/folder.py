"""Score a folder of label maps and write the score tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.console import Console

from dlunet.errors import SomeCasesFailed, UserError, few
from dlunet.evaluation.metrics import ALWAYS, Metric, write_metrics
from dlunet.evaluation.scores import measure_case, score_case
from dlunet.evaluation.summary import summarize_scores
from dlunet.files import write_text
from dlunet.labels import FLARE22, LabelSet, label_set
from dlunet.parallel import for_each_case
from dlunet.run_layout import ScoresLayout
from dlunet.volumes import case_name, list_volumes, other_geometry, read_labels

if TYPE_CHECKING:
    import pandas as pd

#: Label maps with unknown classes count as FLARE22's if at least this many of its 13 ids occur and this id is largest.
LEAST_OF_FLARE22, LIVER = 10, 1


class _Pair(NamedTuple):
    """A prediction and the reference it is scored against."""

    case: str
    prediction: Path
    reference: Path


def evaluate_folder(
    predictions: Path,
    references: Path | Mapping[str, Path],
    output: Path,
    labels: LabelSet | None = FLARE22,
    workers: int | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> pd.DataFrame:
    """Score the prediction for every reference by FLARE22's rules (:func:`dlunet.evaluation.score_case`).

    Writes to ``output``, each file atomically: ``scores.csv`` (columns ``case,organ,dsc,nsd`` and further metrics, one
    row per case and class), ``summary.csv`` (:func:`summarize_scores`), ``metrics.json`` (the meaning of the columns)
    and ``references.json`` (the reference label maps). Files are matched by case name, the file name without its
    extension and ``_0000``. Cases are scored in parallel processes.

    Args:
        predictions: Folder of predicted label maps. A prediction without a reference is skipped with a warning.
        references: Folder of reference label maps on the same grids, or the label maps by case name.
        output: Folder for the tables; created if missing.
        labels: The classes; None if unknown, then those that occur are scored, see :func:`occurring_labels`.
        workers: Number of processes; by default one per CPU core that this process may use.
        metrics: Metrics in addition to DSC and NSD, by column name (:func:`dlunet.evaluation.find_metrics`).

    Returns:
        The rows of ``scores.csv``.

    Raises:
        SomeCasesFailed: A case cannot be read, or its grids differ; all other cases are scored and written first.
        UserError: A folder is missing or has no volumes, a reference has no prediction, or no case can be scored.
    """
    import pandas as pd  # not at the top: the processes that score, and training, need neither its seconds nor memory

    console = Console(stderr=True)
    pairs = _match(predictions, references, console)
    shown = None
    if labels is None:
        labels, shown = occurring_labels(pairs, workers)
        console.print(_describe_labels(labels, shown), markup=False, highlight=False)
    _make_folder(output)
    rows: dict[str, list[tuple]] = {}
    failures: dict[str, str] = {}
    metrics = metrics or {}
    score = partial(_score_pair, labels=labels, metrics=metrics)
    for pair, scored in for_each_case("scoring", score, pairs, workers):
        if isinstance(scored, UserError):
            failures[pair.case] = str(scored)
            console.print(f"{pair.case}: not scored: {scored}", style="red", markup=False, highlight=False)
        else:
            rows[pair.case] = [row for row in scored if shown is None or row[0] in shown]
    scores = pd.DataFrame(
        [(pair.case, *row) for pair in pairs if pair.case in rows for row in rows[pair.case]],
        columns=["case", "organ", *ALWAYS, *metrics],
    )
    if len(scores):
        layout = ScoresLayout(output)
        write_text(layout.table, scores.to_csv(index=False))
        write_text(layout.summary, summarize_scores(scores, labels, shown).to_csv(index=False))
        write_metrics({**ALWAYS, **metrics}, output)
        references_used = {pair.case: str(pair.reference.resolve()) for pair in pairs if pair.case in rows}
        write_text(layout.references, json.dumps(references_used, indent=2))
    if failures:
        kind = SomeCasesFailed if rows else UserError
        raise kind(_failure_message(failures, len(rows), output))
    return scores


def occurring_labels(pairs: Sequence[_Pair], workers: int | None = None) -> tuple[LabelSet, set[str] | None]:
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


def _count_labels(pair: _Pair) -> np.ndarray:
    """Number of voxels of each value from 0 to 255, in prediction and reference together."""
    maps = (read_labels(path).array for path in (pair.prediction, pair.reference))
    # Slice by slice: bincount converts to 64-bit integers, eight times the memory of the label map.
    return np.sum([np.bincount(axial.ravel(), minlength=256) for array in maps for axial in array], axis=0)


def _describe_labels(labels: LabelSet, shown: set[str] | None) -> str:
    if shown is None:
        return "found labels up to 13: scored as FLARE22's organs; set labels=dataset.json if they are other classes"
    found = ", ".join(label.name for label in labels if label.name in shown) or "none"
    return (
        f"found {found}; their names are unknown: labels=dataset.json names them, labels=flare22 takes them as "
        "FLARE22's"
    )


def _match(predictions: Path, references: Path | Mapping[str, Path], console: Console) -> list[_Pair]:
    predicted = _by_case(predictions)
    expected = _by_case(references) if isinstance(references, Path) else references
    missing = sorted(set(expected) - set(predicted))
    if missing:
        raise UserError(
            f"{expected[missing[0]]}: has no prediction ({len(missing)} of {len(expected)} references have none: "
            f"{few(missing)}); expected {predictions / missing[0]}.nii.gz; predict it, or remove the reference"
        )
    surplus = sorted(set(predicted) - set(expected))
    if surplus:
        text = f"{predictions}: {len(surplus)} predictions without a reference are ignored: {few(surplus)}"
        console.print(text, style="yellow", markup=False, highlight=False)
    return [_Pair(case, predicted[case], expected[case]) for case in sorted(expected)]


def _by_case(folder: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in list_volumes(folder):
        other = paths.setdefault(case_name(path), path)
        if other != path:
            raise UserError(f"{path}: is the same case as {other.name}; expected one file per case; remove one")
    if not paths:
        raise UserError(f"{folder}: found no volumes; expected one label map per case, such as NAME.nii.gz")
    return paths


def _score_pair(pair: _Pair, labels: LabelSet, metrics: Mapping[str, Metric]) -> list[tuple]:
    """For each class its name and the value of each metric."""
    prediction = read_labels(pair.prediction, labels.num_classes)
    reference = read_labels(pair.reference, labels.num_classes)
    if not prediction.stored.fits(reference.stored):
        what_to_do = "write the prediction on the CT's own grid"
        raise other_geometry(pair.prediction, prediction.stored, pair.reference, reference.stored, what_to_do)
    # In FLARE22 the third stored axis is always z; where it points inferior, the official script counts from the top.
    slices_descend = reference.stored.orientation[2] == "I"
    maps = prediction.array, reference.array, reference.spacing
    scores = score_case(*maps, labels, slices_descend)
    measures = [metric.measure for metric in metrics.values() if metric.measure is not None]
    if not measures:
        return list(scores)
    further = measure_case(*maps, measures, labels, slices_descend)
    return [(*score, *values) for score, values in zip(scores, further, strict=True)]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot create directory ({error.strerror}); choose another output") from None


def _failure_message(failures: dict[str, str], scored: int, output: Path) -> str:
    done = f"the other {scored} are in {ScoresLayout(output).table}" if scored else "no other case was scored"
    lines = "\n".join(f"  {message}" for _, message in sorted(failures.items()))
    return f"{len(failures)} of {len(failures) + scored} cases could not be scored ({done}):\n{lines}"
