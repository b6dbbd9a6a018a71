"""Pairs of predictions and references: matched by case, and scored in parallel."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from dlunet.errors import UserError, few
from dlunet.evaluation.metrics import Metric
from dlunet.evaluation.scores import measure_case, score_case
from dlunet.labels import LabelSet
from dlunet.parallel import for_each_case
from dlunet.volumes import check_grid, file_stem, label_name, list_volumes, read_labels

#: For each class of a case its name and the value of each metric.
Rows = list[tuple]


class Pair(NamedTuple):
    """A prediction and the reference it is scored against."""

    case: str
    prediction: Path
    reference: Path


def message_console() -> Console:
    """Prints messages as they are: no markup in the names of files, and no line breaks in their paths."""
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def match_pairs(predictions: Path, references: Path | Mapping[str, Path], console: Console) -> list[Pair]:
    """The pairs in the order of their cases.

    Args:
        predictions: Folder of predicted label maps.
        references: Folder of reference label maps, or the label maps by case name.
        console: Predictions without a reference are named here.

    Raises:
        UserError: A folder has no volumes or two of a case, or a reference has no prediction.
    """
    predicted, expected = _by_cases(predictions, references)
    missing = sorted(set(expected) - set(predicted))
    if missing:
        raise UserError(
            f"{expected[missing[0]]}: has no prediction ({len(missing)} of {len(expected)} references have none: "
            f"{few(missing)}); expected {predictions / missing[0]}.nii.gz; predict it, or remove the reference"
        )
    surplus = sorted(set(predicted) - set(expected))
    if surplus:
        text = f"{predictions}: {len(surplus)} predictions without a reference are ignored: {few(surplus)}"
        console.print(text, style="yellow")
    return [Pair(case, predicted[case], expected[case]) for case in sorted(expected)]


def predicted_references(predictions: Path, references: Path) -> tuple[dict[str, Path], list[Path]]:
    """The references that have a prediction, by case, and those that have none.

    Raises:
        UserError: A folder has no volumes or two of a case, or no reference has a prediction.
    """
    predicted, expected = _by_cases(predictions, references)
    found = {case: path for case, path in expected.items() if case in predicted}
    if not found:
        raise UserError(f"{predictions}: has no prediction for any of {len(expected)} references in {references}")
    return found, [expected[case] for case in sorted(set(expected) - set(found))]


def score_pairs(
    pairs: Sequence[Pair],
    labels: LabelSet,
    metrics: Mapping[str, Metric],
    shown: Container[str] | None,
    workers: int | None,
    console: Console,
) -> tuple[dict[str, Rows], dict[str, str]]:
    """Score pairs in parallel processes.

    Args:
        pairs: The pairs.
        labels: The classes.
        metrics: Metrics in addition to DSC and NSD.
        shown: The names of the classes that get a row; None: all.
        workers: Number of processes; None: one per core.
        console: Cases that cannot be scored are named here.

    Returns:
        The rows of the cases that could be scored, and messages about the others, both by case.
    """
    rows: dict[str, Rows] = {}
    failures: dict[str, str] = {}
    score = partial(_score_pair, labels=labels, metrics=metrics)
    for pair, scored in for_each_case("scoring", score, pairs, workers):
        if isinstance(scored, UserError):
            failures[pair.case] = str(scored)
            console.print(f"{pair.case}: not scored: {scored}", style="red")
        else:
            rows[pair.case] = [row for row in scored if shown is None or row[0] in shown]
    return rows, failures


def _score_pair(pair: Pair, labels: LabelSet, metrics: Mapping[str, Metric]) -> Rows:
    prediction = read_labels(pair.prediction, labels.num_classes)
    reference = read_labels(pair.reference, labels.num_classes)
    check_grid(pair.prediction, prediction, pair.reference, reference, "write the prediction on the CT's own grid")
    # In FLARE22 the third stored axis is always z; where it points inferior, the official script counts from the top.
    slices_descend = reference.stored.orientation[2] == "I"
    maps = prediction.array, reference.array, reference.spacing
    scores = score_case(*maps, labels, slices_descend)
    measures = [metric.measure for metric in metrics.values() if metric.measure is not None]
    if not measures:
        return list(scores)
    further = measure_case(*maps, measures, labels, slices_descend)
    return [(*score, *values) for score, values in zip(scores, further, strict=True)]


def _by_cases(
    predictions: Path, references: Path | Mapping[str, Path]
) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
    """Predictions and references by case."""
    found = _list(predictions)
    if isinstance(references, Path):
        # The names of the cases are unknown: a name that is in both folders is one, whatever it ends in.
        references = _by_case(_list(references), {file_stem(path) for path in found})
    return _by_case(found, references), references


def _list(folder: Path) -> list[Path]:
    paths = list_volumes(folder)
    if not paths:
        raise UserError(f"{folder}: found no volumes; expected one label map per case, such as NAME.nii.gz")
    return paths


def _by_case(label_maps: Sequence[Path], cases: Container[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in label_maps:
        other = paths.setdefault(label_name(path, cases), path)
        if other != path:
            raise UserError(f"{path}: is the same case as {other.name}; expected one file per case; remove one")
    return paths
