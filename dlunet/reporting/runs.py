"""Training runs, finished or not, as read from their run folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlunet.datasets import Case
from dlunet.errors import UserError
from dlunet.evaluation import Metric, read_metrics, read_scores
from dlunet.evaluation.metrics import ALWAYS
from dlunet.labels import FLARE22, LabelSet
from dlunet.networks import load_bundle
from dlunet.phantom import is_phantom
from dlunet.run_layout import PredictionsLayout, RunLayout, ScoresLayout
from dlunet.volumes import case_name, file_stem, list_volumes, times

SCORE_COLUMNS = {"case", "organ", "dsc", "nsd"}
#: The seed of label maps whose training is unknown.
NO_SEED = "?"


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: The run folder.
        config: The composed configuration.
        metrics: The logged metrics, one row per logging event; empty if nothing was logged.
        provenance: Commit, versions and machine; empty if unknown.
        scores: Scores of the test cases (``case,organ,dsc,nsd`` and further metrics), or None.
        predictions: Predicted label maps of the test cases, by case name.
        cases: The scored cases with their files, by name.
        labels: The classes.
        score_metrics: The metrics in the columns of the scores.
        missing: Descriptions of what the folder lacks.
        part: The folder in the run folder with its label maps and scores; empty: the run folder itself.
    """

    folder: Path
    config: DictConfig
    metrics: pd.DataFrame
    provenance: dict[str, Any]
    scores: pd.DataFrame | None
    predictions: dict[str, Path]
    cases: dict[str, Case]
    labels: LabelSet = FLARE22
    score_metrics: Mapping[str, Metric] = field(default_factory=lambda: ALWAYS)
    missing: tuple[str, ...] = field(default=())
    part: str = ""

    @property
    def name(self) -> str:
        """The experiment's name, shared by runs that differ only in their seed."""
        return str(self.setting("name", self.folder.name))

    @property
    def seed(self) -> str:
        """The seed, or :data:`NO_SEED`."""
        return str(self.setting("seed", NO_SEED))

    @property
    def data(self) -> str:
        """The dataset's name, such as ``phantom`` or ``flare22``."""
        return str(self.setting("data.name", "unknown data"))

    @property
    def synthetic(self) -> bool:
        """Whether its CTs are generated, whatever the dataset's name and layout."""
        opened = str(self.setting("data.source._target_", "")).endswith(".open_phantoms")
        one_of_each_folder = {case.image.parent: case.image for case in self.cases.values()}
        return opened or any(map(is_phantom, one_of_each_folder.values()))

    @property
    def scale(self) -> str:
        """The scale's name, such as ``cpu`` or ``paper``."""
        return str(self.setting("scale.name", "unknown"))

    @property
    def recipe(self) -> str:
        """The recipe's name, such as ``best``; runs from before there were recipes have the paper's."""
        return str(self.setting("recipe.name", "paper"))

    @property
    def steps(self) -> int:
        """The last logged training step."""
        return int(self.metrics["step"].max()) if len(self.metrics) else 0

    @property
    def costs(self) -> pd.DataFrame | None:
        """Time and memory of prediction per case, columns as in ``efficiency.csv``; None if unknown."""
        try:
            return pd.read_csv(PredictionsLayout(RunLayout(self.folder / self.part).predictions).costs)
        except (ValueError, OSError):
            return None

    def predicted_in(self, part: str) -> Run:
        """This run with other label maps and their scores, in a folder such as ``flips-axes`` in the run folder."""
        place = RunLayout(self.folder / part)
        predictions = _list_predictions(place.predictions, [])
        return replace(
            self, part=part, predictions=predictions, scores=_read_scores(ScoresLayout(place.scores).table, [])
        )

    @property
    def plan(self) -> str:
        """Voxel size (z, y, x) and patch, as printed."""
        spacing, patch = self.setting("plan.spacing", ()), self.setting("plan.patch_size", ())
        if not spacing or not patch:
            return "unknown"
        return f"{times(spacing)} mm, patches of {times(patch)} voxels"

    @property
    def trained_steps(self) -> str:
        """The steps of the training, as printed; of one that ended epochs before its plan, those taken as well."""
        epochs, steps = self.setting("trainer.max_epochs", None), self.setting("sampling.steps_per_epoch", None)
        if not isinstance(epochs, int) or not isinstance(steps, int):
            return "unknown"
        planned, taken = epochs * steps, self.steps + 1 if len(self.metrics) else 0
        return str(planned) if taken + steps > planned else f"{taken} of {planned}"

    @property
    def commit(self) -> str:
        """The commit that it was trained with, abbreviated, and whether files differed from it."""
        return str(self._recorded("git", "commit"))[:12] + " (modified)" * bool(
            self._recorded("git", "modified", False)
        )

    @property
    def is_scored_on_validation(self) -> bool:
        """Whether its validation cases were scored; of runs that have not recorded it, by the names of the cases."""
        if self.scores is None:
            return False
        run = RunLayout(self.folder)
        try:
            return ScoresLayout(run.scores).part_of_dataset.read_text(encoding="utf-8").strip() == "validation"
        except OSError:
            pass
        try:
            return set(self.scores["case"]) <= set(json.loads(run.cases.read_text(encoding="utf-8"))["validation"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @cached_property  # it may read a checkpoint
    def is_scored_before_its_end(self) -> bool:
        """Whether it was trained further since it was scored, by the times of the files and, if known, the weights."""
        run = RunLayout(self.folder)
        try:
            if ScoresLayout(run.scores).table.stat().st_mtime >= run.trained.stat().st_mtime:
                return False
            # The times of a copy may be those of copying.
            return self.weights is None or self.weights != load_bundle(run.trained).digest
        except OSError:
            return False
        except UserError:  # a checkpoint that cannot be read
            return True

    @property
    def weights(self) -> str | None:
        """What identifies the weights that made its label maps; None if unknown."""
        try:
            record = PredictionsLayout(RunLayout(self.folder / self.part).predictions).record
            return str(json.loads(record.read_text(encoding="utf-8"))["weights"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def machine(self) -> str:
        """The GPUs that it was trained with, or the processor."""
        return ", ".join(map(str, self._recorded("machine", "gpus", []))) or self._recorded("machine", "processor")

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """The Python classes of its method, network, loss and loss on pseudo-labels; empty where none is named.

        Where only the second loss is not named, pseudo-labels have the same one as labels.
        """
        kinds = (self.setting(key, "") for key in ("method._target_", "network.kind", "loss._target_"))
        method, network, loss = (str(kind).rpartition(".")[2] for kind in kinds)
        return method, network, loss, str(self.setting("pseudo_loss._target_", loss)).rpartition(".")[2]

    def _recorded(self, part: str, key: str, default: Any = "unknown") -> Any:
        values = self.provenance.get(part)
        return values.get(key, default) if isinstance(values, dict) else default

    def setting(self, key: str, default: Any) -> Any:
        """A value of the configuration by dotted name; the default if it is absent or cannot be resolved."""
        try:
            value = OmegaConf.select(self.config, key)
        except OmegaConfBaseException:
            value = None
        return default if value is None else value


#: Runs by experiment.
Groups = Mapping[str, Sequence[Run]]


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """The run folders among and below the given folders: those with ``config.yaml`` and ``metrics.csv``.

    Raises:
        UserError: A folder is missing, or neither is nor contains a run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; expected a run folder, or a folder of run folders")
        config, metrics = RunLayout(folder).config.name, RunLayout(folder).metrics.name
        below = [path.parent for path in sorted(folder.rglob(config))]
        runs = [path for path in below if RunLayout(path).metrics.is_file()]
        if not runs:
            raise UserError(
                f"{folder}: found no run; expected a folder with {config} and {metrics} in it or below it; "
                "pass the output folder of a training"
            )
        found.update({run.resolve(): run for run in runs})
    return list(found.values())


def read_run(folder: Path) -> Run:
    """Read a run folder; parts that are absent or damaged are listed in ``missing``.

    Raises:
        UserError: The configuration cannot be read, without which nothing is known about the run, or a case and class
            is scored several times.
    """
    missing: list[str] = []
    run = RunLayout(folder)
    predictions, scores = PredictionsLayout(run.predictions), ScoresLayout(run.scores)
    return Run(
        folder=folder,
        config=_read_config(run.config),
        metrics=_read_metrics(run.metrics, missing),
        provenance=_read_provenance(run.provenance, missing),
        scores=_read_scores(scores.table, missing),
        predictions=_list_predictions(predictions.path, missing),
        cases=_read_cases(predictions.record, scores.references, missing),
        labels=_read_labels(run.labels, missing),
        score_metrics=_read_score_metrics(scores, missing),
        missing=tuple(missing),
    )


def read_predictions(folder: Path, scores: Path, labels: LabelSet, images: Path | None = None) -> Run:
    """A folder of label maps that were scored, as a run of the folder's name, whatever made them.

    Args:
        folder: The label maps.
        scores: The folder that :func:`dlunet.evaluation.evaluate_folder` has written their scores to.
        labels: The classes.
        images: Folder of the CTs; None: those that the label maps were predicted for, if that is known.
    """
    missing: list[str] = []
    layout = ScoresLayout(scores)
    return Run(
        folder=folder,
        config=OmegaConf.create({"name": folder.resolve().name}),
        metrics=_no_metrics(),
        provenance={},
        scores=_read_scores(layout.table, missing),
        predictions=_list_predictions(folder, missing),
        cases=_read_cases(images or PredictionsLayout(folder).record, layout.references, missing),
        labels=labels,
        score_metrics=_read_score_metrics(layout, missing),
        missing=tuple(missing),
    )


def _read_config(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # the YAML parser and OmegaConf have separate exception hierarchies
        raise UserError(f"{path}: cannot be read ({error}); expected the configuration that training wrote") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: found a list; expected the configuration that training wrote")
    return config


def _read_metrics(path: Path, missing: list[str]) -> pd.DataFrame:
    try:
        metrics = pd.read_csv(path)
    except (ValueError, OSError):
        metrics = _no_metrics()
    if "step" not in metrics or metrics["step"].isna().all():
        missing.append(f"{path.name} contains no logged step")
        return _no_metrics()
    return metrics.dropna(subset=["step"]).sort_values("step", kind="stable")


def _no_metrics() -> pd.DataFrame:
    return pd.DataFrame({"step": pd.Series(dtype=int)})


def _read_provenance(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        provenance = None
    if isinstance(provenance, dict):
        return provenance
    missing.append(f"no {path.name}")
    return {}


def _read_scores(path: Path, missing: list[str]) -> pd.DataFrame | None:
    where = f"{path.parent.name}/{path.name}"
    try:
        scores = read_scores(path)
    except FileNotFoundError:
        missing.append(f"no {where}")
        return None
    except (ValueError, KeyError, OSError):
        missing.append(f"{where} cannot be read")
        return None
    if not set(scores.columns) >= SCORE_COLUMNS or scores.empty:
        missing.append(f"{where} has no rows of case, organ, dsc, nsd")
        return None
    counts = scores.groupby(["case", "organ"], sort=False).size()
    if counts.max() > 1:
        case, organ = scores.loc[scores.duplicated(["case", "organ"]), ["case", "organ"]].iloc[0]
        raise UserError(
            f"{path}: {case}, {organ} occurs {counts[case, organ]} times; expected one row per case and class; "
            "evaluate again"
        )
    return scores


def _read_score_metrics(scores: ScoresLayout, missing: list[str]) -> Mapping[str, Metric]:
    try:
        return read_metrics(scores.path)
    except (OSError, ValueError, TypeError, AttributeError):
        missing.append(f"{scores.path.name}/{scores.metrics.name} cannot be read: only DSC and NSD are shown")
        return ALWAYS


def _read_cases(predicted: Path, scored: Path, missing: list[str]) -> dict[str, Case]:
    """The cases whose CT is in the record of predictions, or in a folder, and whose reference in that of the scores."""
    try:
        images = _images(predicted) if predicted.is_dir() else json.loads(predicted.read_text("utf-8"))["images"]
        references = json.loads(scored.read_text(encoding="utf-8"))
        return {name: Case(name, Path(images[name]), Path(references[name])) for name in images if name in references}
    except (ValueError, OSError, KeyError, TypeError):
        missing.append(f"{predicted.name} and {scored.name} do not list the scored CTs")
        return {}


def _read_labels(path: Path, missing: list[str]) -> LabelSet:
    try:
        return LabelSet.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError, KeyError, TypeError):
        missing.append(f"no {path.name}: FLARE22's organs are assumed")
        return FLARE22


def _images(folder: Path) -> dict[str, Path]:
    """The CTs by case, and by their whole names, which label maps of the same names are scored under."""
    paths = list_volumes(folder)
    return {file_stem(path): path for path in paths} | {case_name(path): path for path in paths}


def _list_predictions(folder: Path, missing: list[str]) -> dict[str, Path]:
    """The label maps by their whole names, and without ``_0000``, see :func:`dlunet.volumes.label_name`."""
    paths = list_volumes(folder) if folder.is_dir() else []
    if not paths:
        missing.append("no predictions")
    return {case_name(path): path for path in paths} | {file_stem(path): path for path in paths}
