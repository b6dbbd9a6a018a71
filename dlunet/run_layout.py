"""What lies where in a run folder, and in a folder of predicted label maps or of scores, inside a run or elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunLayout:
    """The parts of a run folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The composed config."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Commit, versions and machine."""
        return self.path / "provenance.json"

    @property
    def cases(self) -> Path:
        """The names of the cases that it trains and validates on, by part."""
        return self.path / "cases.json"

    @property
    def labels(self) -> Path:
        """The organs."""
        return self.path / "labels.json"

    @property
    def metrics(self) -> Path:
        """What was logged, step by step."""
        return self.path / "metrics.csv"

    @property
    def log(self) -> Path:
        """What was printed."""
        return self.path / "train.log"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch that was finished."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch; there is none where no validation tells which is best."""
        return self.checkpoints / "best.ckpt"

    @property
    def predictions(self) -> Path:
        """Label maps of the test cases, see :class:`PredictionsLayout`."""
        return self.path / "predictions"

    @property
    def scores(self) -> Path:
        """Their scores, see :class:`ScoresLayout`."""
        return self.path / "scores"


@dataclass(frozen=True)
class PredictionsLayout:
    """What lies beside predicted label maps.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def record(self) -> Path:
        """What the label maps were made with, and of which CTs."""
        return self.path / "prediction.json"


@dataclass(frozen=True)
class ScoresLayout:
    """The tables of a folder of scores, and what they are about.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def table(self) -> Path:
        """A row for each case and organ."""
        return self.path / "scores.csv"

    @property
    def summary(self) -> Path:
        """A row for each organ."""
        return self.path / "summary.csv"

    @property
    def metrics(self) -> Path:
        """What the columns of the tables are, so that a report needs no plug-in."""
        return self.path / "metrics.json"

    @property
    def references(self) -> Path:
        """The label maps that were the references, by case."""
        return self.path / "references.json"
