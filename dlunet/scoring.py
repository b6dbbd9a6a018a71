"""Scores of label maps, and reports, as functions of the config of ``evaluate`` and of ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig

from dlunet.datasets import labels_of, read_dataset_json
from dlunet.errors import SomeCasesFailed, UserError, few
from dlunet.evaluation import (
    evaluate_folder,
    evaluate_shard,
    find_metrics,
    predicted_references,
    print_summary,
    read_scores,
)
from dlunet.labels import FLARE22, LabelSet
from dlunet.run_layout import ScoresLayout
from dlunet.settings import check_config
from dlunet.shards import Shard

if TYPE_CHECKING:
    import pandas as pd

    from dlunet.reporting import Run


def evaluate(config: DictConfig) -> None:
    """Score label maps and print the summary.

    Args:
        config: The config of ``evaluate``.

    Raises:
        UserError: A setting, a folder or the labels cannot be used.
        SomeCasesFailed: Some cases could not be scored; the others are.
    """
    check_config(config)
    metrics = find_metrics(_as_list(config.metrics))
    predictions, references, output = Path(config.predictions), Path(config.references), Path(config.output)
    labels, shard = _scored_labels(config, predictions), Shard.parse(config.shard)
    if labels is None and not shard.is_all:
        raise UserError(
            f"{predictions}: its classes are unknown, and a shard cannot show those of all cases; add "
            "labels=dataset.json or labels=flare22"
        )
    if not shard.is_all and labels is not None:
        _print_scores(evaluate_shard(predictions, references, output, labels, shard, metrics), output)
        return
    try:
        _print_scores(evaluate_folder(predictions, references, output, labels, metrics=metrics), output)
    except SomeCasesFailed:  # the other cases are scored
        _print_scores(read_scores(ScoresLayout(output).table), output)
        raise


def _print_scores(scores: pd.DataFrame | None, output: Path) -> None:
    if scores is not None and len(scores):
        print_summary(scores, output)
        print(f"scores: {output}")


def report(config: DictConfig) -> None:
    """Write the report of runs or of folders of label maps, or a table of the paper, and print its summary.

    Args:
        config: The config of ``report``.

    Raises:
        UserError: A setting, a run or a folder cannot be used.
        SomeCasesFailed: Some label maps could not be scored; the report is about the others.
    """
    check_config(config)
    _check_what_to_report(config)
    from dlunet import reporting  # only here: scores alone and wrong settings need no Matplotlib

    compared = {"floor": config.floor, "ceiling": config.ceiling}
    failed: list[str] = []
    if config.runs is None:
        contents = reporting.report_of(_score_for_report(config, failed), **compared, left_out=failed)
    else:
        contents = reporting.read_report(_folders(config.runs), **compared)
    output, cases = Path(config.output), None if config.cases is None else _as_list(config.cases)
    if config.table is None:
        reporting.print_report(contents, reporting.write_report(contents, output, cases))
    elif config.table == "methods":
        reporting.print_sheets(*reporting.write_methods_table(contents, output))
    else:
        reporting.print_paper_table(reporting.write_paper_table(contents, config.table, output))
    if failed:
        raise SomeCasesFailed("\n".join(failed))


def _check_what_to_report(config: DictConfig) -> None:
    """Check that the settings of a report belong together."""
    if (config.runs is None) == (config.predictions is None):
        found = "neither runs nor predictions" if config.runs is None else "both runs and predictions"
        raise UserError(f"found {found}; expected runs=FOLDER, or predictions=FOLDER references=FOLDER")
    if config.predictions is not None and config.references is None:
        raise UserError("missing: references; add references=FOLDER, with the label maps to compare with")
    kinds = ("references", "images", "labels", "floor", "ceiling", "cases")
    given = {name for name in kinds if config[name] is not None}
    if config.runs is not None and (alone := given & {"references", "images", "labels"}):
        raise UserError(
            f"{min(alone)}: found it with runs, which know theirs; expected it with predictions; leave it out"
        )
    if config.floor is not None and config.floor == config.ceiling:
        raise UserError(f"ceiling: found {config.ceiling}, which is the floor; expected another experiment")
    if config.table is not None and config.predictions is not None:
        raise UserError(
            f"table={config.table}: found it with predictions; expected runs=FOLDER: a table is made of runs"
        )
    if config.table is not None and (alone := given & {"floor", "ceiling", "cases"}):
        raise UserError(f"{min(alone)}: found it with table={config.table}, which has its own; leave one out")


def _score_for_report(config: DictConfig, failed: list[str]) -> list[Run]:
    """Score folders of label maps, each into ``scores/NAME`` of the report's folder.

    Args:
        config: The config of ``report``.
        failed: Receives a message for each folder of which some cases could not be scored.
    """
    from dlunet.reporting import read_predictions

    images = None if config.images is None else Path(config.images)
    if images is not None and not images.is_dir():
        raise UserError(f"images={images}: no such folder; expected the CTs of the label maps")
    runs: list[Run] = []
    for folder in _folders(config.predictions):
        labels = _scored_labels(config, folder)
        if labels is None:
            raise UserError(f"{folder}: its classes have no names; add labels=dataset.json or labels=flare22")
        name = folder.resolve().name
        if name in (run.name for run in runs):
            raise UserError(f"{folder}: is the second folder named {name}; expected different names; rename one")
        scores = Path(config.output) / "scores" / name
        references, absent = predicted_references(folder, Path(config.references))
        if absent:
            count = f"{len(absent)} of {len(absent) + len(references)}"
            failed.append(f"{folder}: no label map for {count} references, which are left out: {few(absent)}")
        try:
            evaluate_folder(folder, references, scores, labels)
        except SomeCasesFailed as error:
            failed.append(str(error))
        runs.append(read_predictions(folder, scores, labels, images))
    return runs


def _folders(given: str | ListConfig) -> list[Path]:
    return list(map(Path, _as_list(given)))


def _as_list(given: str | ListConfig) -> list[str]:
    return list(given) if isinstance(given, ListConfig) else [given]


def _scored_labels(config: DictConfig, predictions: Path) -> LabelSet | None:
    """The classes to score: those the user names, else those of the checkpoint that made the predictions, if known."""
    if config.labels is None:
        from dlunet.inference import OutputFolder  # only here: it loads PyTorch

        return OutputFolder(predictions).labels()
    path = Path(config.labels)
    if str(path).lower() == FLARE22.name.lower() and not path.is_file():
        return FLARE22
    return labels_of(path, read_dataset_json(path))
