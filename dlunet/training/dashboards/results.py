"""Adds the results of a finished run to its run of Weights & Biases: test cases, report, checkpoints."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dlunet.training.dashboards.boards import Picture, wandb_image
from dlunet.training.loggers import wandb_run
from dlunet.training.run_folder import RunFolder
from dlunet.volumes import read_ct, read_labels
from dlunet.volumes.slices import grey, most_organs_slice

if TYPE_CHECKING:
    from dlunet.reporting import Run


def log_results(logger: DictConfig, folder: RunFolder, scored: bool) -> None:
    """Log the scores of the test cases, the report of the run and, if the logger is to, its checkpoints.

    Does nothing if the run is not logged to Weights & Biases. To be called within :func:`closing_loggers`.

    Args:
        logger: The config of the logger; ``checkpoints`` says whether checkpoints are logged.
        folder: The run folder.
        scored: Whether test cases were scored.
    """
    dashboard = wandb_run(logger, folder)
    if dashboard is None:
        return
    if scored:
        from dlunet.reporting import read_run  # imports pandas, whose memory training does not need

        dashboard.log({"test/cases": _case_table(read_run(folder.path))})
        _log_report(dashboard, folder)
    if logger.get("checkpoints"):
        for alias, path in (("best", folder.best), ("last", folder.last)):
            if path.exists():
                _log_artifact(dashboard, "model", path, [alias])


def _case_table(run: Run) -> Any:
    """One row per scored case: its picture, the means of its scores, and the scores of each class."""
    import wandb

    assert run.scores is not None
    metrics = list(run.score_metrics)
    of_case = run.scores.groupby("case")[metrics].mean()
    of_class = run.scores.pivot(index="case", columns="organ", values=metrics)
    columns = [f"{metric} {label.abbreviation}" for metric in metrics for label in run.labels]
    table = wandb.Table(columns=["case", "picture", *metrics, *columns])
    for name in of_case.index:
        scores = [of_class.at[name, (metric, label.name)] for metric in metrics for label in run.labels]
        table.add_data(name, wandb_image(_picture(run, name), run.labels), *map(float, [*of_case.loc[name], *scores]))
    return table


def _picture(run: Run, name: str) -> Picture:
    """The slice of a CT with the most classes, as predicted and as it should be."""
    case = run.cases[name]
    assert case.label is not None
    image, reference, prediction = read_ct(case.image), read_labels(case.label), read_labels(run.predictions[name])
    z = most_organs_slice(reference.array)
    label_maps = {"prediction": prediction.array[z], "reference": reference.array[z]}
    return Picture(grey(image.array[z]), label_maps, name)


def _log_report(dashboard: Any, folder: RunFolder) -> None:
    from dlunet.reporting import read_report, write_report

    with TemporaryDirectory() as temporary:
        write_report(read_report([folder.path]), Path(temporary))
        _log_artifact(dashboard, "report", Path(temporary), [])


def _log_artifact(dashboard: Any, kind: str, path: Path, aliases: list[str]) -> None:
    """Log a file, or the files in a folder, as an artifact, which copies them."""
    import wandb

    artifact = wandb.Artifact(f"{kind}-{dashboard.id}", kind)
    if path.is_dir():
        artifact.add_dir(str(path))
    else:
        artifact.add_file(str(path))
    dashboard.log_artifact(artifact, aliases=aliases)
