"""The layout of run folders, of folders of predictions or scores, inside a run or elsewhere, and of self-training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlunet.shards import Shard


@dataclass(frozen=True)
class RunLayout:
    """The files and folders of a run folder.

    Attributes:
        path: The run folder.
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
        """The names of the training and validation cases, by part."""
        return self.path / "cases.json"

    @property
    def pseudo_labels(self) -> Path:
        """The stamps of the pseudo-labels that it is trained with, by case."""
        return self.path / "pseudo_labels.json"

    @property
    def labels(self) -> Path:
        """The classes."""
        return self.path / "labels.json"

    @property
    def metrics(self) -> Path:
        """The logged metrics, step by step."""
        return self.path / "metrics.csv"

    @property
    def log(self) -> Path:
        """The log messages of the run."""
        return self.path / "train.log"

    @property
    def wandb_id(self) -> Path:
        """The id of its run of Weights & Biases, which a resumed run continues."""
        return self.path / "wandb_id.txt"

    @property
    def faults(self) -> Path:
        """Steps whose gradients were not finite, for ``dlunet debug``."""
        return self.path / "faults"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The last checkpoint: of the last finished epoch, or of a step after it."""
        return self.checkpoints / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last one, in case that one is damaged."""
        return self.checkpoints / "previous.ckpt"

    @property
    def unlogged(self) -> Path:
        """The next last checkpoint, until the metrics of its step are logged."""
        return self.checkpoints / "unlogged.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch; missing if there is no validation to determine it."""
        return self.checkpoints / "best.ckpt"

    @property
    def trained(self) -> Path:
        """The checkpoint to use: the best one, or the last if there is no validation to determine the best."""
        return self.best if self.best.exists() else self.last

    @property
    def predictions(self) -> Path:
        """Label maps of the test cases, see :class:`PredictionsLayout`."""
        return self.path / "predictions"

    @property
    def scores(self) -> Path:
        """The scores of the test cases, see :class:`ScoresLayout`."""
        return self.path / "scores"


@dataclass(frozen=True)
class PredictionsLayout:
    """The files beside predicted label maps.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def record(self) -> Path:
        """The checkpoint and settings that produced the label maps, and the CTs."""
        return self.path / "prediction.json"

    @property
    def costs(self) -> Path:
        """Time and memory per case."""
        return self.path / "efficiency.csv"


@dataclass(frozen=True)
class ScoresLayout:
    """The tables in a folder of scores, and the files that describe them.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def table(self) -> Path:
        """One row per case and class."""
        return self.path / "scores.csv"

    @property
    def summary(self) -> Path:
        """One row per class."""
        return self.path / "summary.csv"

    @property
    def metrics(self) -> Path:
        """The metrics in the columns of the tables, so that a report needs no plug-in."""
        return self.path / "metrics.json"

    @property
    def references(self) -> Path:
        """The reference label maps, by case."""
        return self.path / "references.json"

    @property
    def part_of_dataset(self) -> Path:
        """Which cases a training has scored: ``test`` or ``validation``."""
        return self.path / "part.txt"

    def part(self, shard: Shard) -> Path:
        """The scores of a shard of the cases, until those of all shards are in the tables."""
        return self.path / f".shard-{shard.number}-of-{shard.count}.json"


@dataclass(frozen=True)
class RoundLayout:
    """The folders of a round of self-training.

    Attributes:
        path: The folder of the round.
    """

    path: Path

    @property
    def pseudo_labels(self) -> Path:
        """Label maps of all unlabelled cases, by the network of the round before."""
        return self.path / "pseudo_labels"

    @property
    def kept(self) -> Path:
        """From the second round on: those that agree with the label maps of the round before (:class:`KeptLayout`)."""
        return self.path / "kept"

    @property
    def student(self) -> Path:
        """The run folder of the student."""
        return self.path / "student"


@dataclass(frozen=True)
class SelfTrainingLayout:
    """The folders of self-training.

    Attributes:
        path: The folder of all of them.
    """

    path: Path

    @property
    def teacher(self) -> Path:
        """The run folder of the teacher."""
        return self.path / "teacher"

    @property
    def summary(self) -> Path:
        """The table of rounds, if there are several."""
        return self.path / "rounds" / "summary.csv"

    def round(self, number: int) -> RoundLayout:
        """The folders of a round; the first round has no folder of its own."""
        return RoundLayout(self.path if number == 1 else self.path / "rounds" / str(number))


@dataclass(frozen=True)
class KeptLayout:
    """The files beside the label maps that a round of self-training has kept.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def table(self) -> Path:
        """One row per unlabelled case: what was kept and why."""
        return self.path / "kept.csv"

    @property
    def record(self) -> Path:
        """What the choice was made from."""
        return self.path / "made_from.json"
