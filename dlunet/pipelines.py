"""The commands as functions from config to result, for the command line and for Python (``docs/python.md``)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from dlunet import training
from dlunet.datasets import Case, Dataset, dataset_of, with_pseudo_labels
from dlunet.errors import SomeCasesFailed, UserError
from dlunet.evaluation import evaluate_folder
from dlunet.inference import Extras, Predictor, find_images, load_engine, predict_files
from dlunet.inference.postprocessing import checked_steps
from dlunet.methods import method_of
from dlunet.rounds import keep_agreeing, summarize_rounds
from dlunet.run_layout import KeptLayout, ScoresLayout, SelfTrainingLayout
from dlunet.settings import check_config
from dlunet.shards import Shard
from dlunet.training import RunFolder
from dlunet.volumes import label_name, list_volumes

logger = logging.getLogger(__name__)


def train(config: DictConfig) -> Path:
    """Train, score the best checkpoint if ``test`` is set, and return that checkpoint.

    Args:
        config: The config of ``train``.

    Raises:
        UserError: A setting is missing or invalid, or the data or the run folder cannot be used.
    """
    check_config(config)
    cases, part = _cases_to_score(config) if config.test and training.is_first(config.trainer) else ([], "")
    run = RunFolder(Path(config.output))
    before = _changed_at(run.last)
    with training.closing_loggers(config.logger):
        best = training.train(config)
        if config.dry_run or not training.is_first(config.trainer):
            return best
        print(f"best checkpoint: {best}")
        if _changed_at(run.last) == before and (not cases or _is_scored(run, cases)):  # it was finished before
            return best
        if cases:
            _score(cases, part, run, config)
        training.log_results(config.logger, run, scored=bool(cases))
    return best


def self_train(teacher: DictConfig, students: Sequence[DictConfig], folder: Path, agreement: float = 0.8) -> Path:
    """Train a teacher, then in each round pseudo-label the unlabelled CTs and train a student (DLUNet, Fig. 1).

    Round 0 is the teacher. In round 1 the teacher labels the CTs, and the first student is trained with all its label
    maps. In round r > 1 the student of round r − 1 labels all CTs again, and the student of round r is trained with the
    label maps on which it agrees with those of round r − 1. Finished work is not repeated if all configs have
    ``resume: auto``.

    Args:
        teacher: The config of the first training.
        students: The configs of one student per round; their ``data.pseudo_labels`` is set here.
        folder: The folder for label maps, kept cases and the table of rounds, see
            :class:`dlunet.run_layout.SelfTrainingLayout`.
        agreement: The lowest agreement, 0 … 1, with which a case is kept, see :func:`dlunet.rounds.keep_agreeing`.

    Returns:
        The last student's best checkpoint.

    Raises:
        UserError: A setting is missing or invalid, there are too few unlabelled cases, a training fails, or two rounds
            agree on no case.
    """
    if training.joint_launch(teacher.trainer):
        raise UserError(
            "self_train: was started several times, by torchrun or srun; expected one process: start it once, with "
            "trainer.devices=N; its trainings start the others"
        )
    layout = SelfTrainingLayout(folder)
    for config in students[1:]:
        config.agreement = agreement  # it determines the training cases: a run with another value is not resumed
    for config in (teacher, *students):
        check_config(config)
    for config in students:
        _check_uses_unlabelled(config)
    dataset = dataset_of(students[0])
    if len(dataset.unlabelled) < 2:  # checked before the teacher is trained, not after
        raise UserError(
            f"{students[0].data.root}: found {len(dataset.unlabelled)} unlabelled cases; expected at least 2; add CTs "
            "without labels (data.unlabelled=FOLDER), or train on the labelled ones alone: dlunet train "
            "experiment=sup_light"
        )
    print(f"round 0 of {len(students)}: training the teacher, {teacher.name}, in {teacher.output}")
    best = train(teacher)
    if teacher.dry_run:
        print("dry run: the plan of a student is that of dlunet train with the student's experiment, and dry_run=true")
        return best
    for number, student in enumerate(students, start=1):
        labels, now = layout.round(number).pseudo_labels, f"round {number} of {len(students)}"
        print(f"{now}: labelling {len(dataset.unlabelled)} unlabelled CTs in {labels}")
        _pseudo_label(dataset, best, labels, student)
        if number > 1:
            RunFolder(Path(student.output)).check_same_settings({"agreement": agreement}, only=["agreement"])
            labels = _keep(dataset, layout, number, agreement, student.data.workers)
        student.data.pseudo_labels = str(labels)
        print(f"{now}: training the student, {student.name}, in {student.output}, with the pseudo-labels in {labels}")
        best = train(student)
    if len(students) > 1:
        summary = summarize_rounds([teacher, *students], layout.summary)
        print(f"{layout.summary}:\n{summary.to_string(index=False, na_rep='-')}")
    return best


def predict(config: DictConfig) -> Path:
    """Segment CTs and return the folder of label maps.

    Args:
        config: The config of ``predict``.

    Raises:
        UserError: A setting, the checkpoint, a CT or the output folder cannot be used.
    """
    check_config(config)
    if config.report and config.shard is not None:
        raise UserError(
            "report: found true with a shard; expected false: the page is about all CTs; when all shards are done, "
            "rerun the command without shard"
        )
    steps = checked_steps([config.postprocess] if isinstance(config.postprocess, str) else config.postprocess)
    bundle, engine = load_engine(Path(config.checkpoint), config.engine, config.device, config.precision)
    sources = config.input if isinstance(config.input, ListConfig) else [config.input]
    images = [image for source in sources for image in find_images(Path(str(source)))]
    print(f"engine: {engine.name}")
    predictor = Predictor(bundle, config.tile_step, config.flips, engine, steps)
    extras = Extras(config.volumes, config.overlay, plot=True)
    output, shard, failed = Path(config.output), Shard.parse(config.shard), None
    try:
        predict_files(predictor, images, output, extras=extras, strict=config.strict, shard=shard)
    except SomeCasesFailed as error:
        failed = error
    if config.report:
        from dlunet.inference.predictions_page import write_predictions_page  # imports pandas and matplotlib

        print(f"page: {write_predictions_page(output, images, bundle.labels)}")
    if failed is not None:
        raise failed
    return output


def _check_uses_unlabelled(student: DictConfig) -> None:
    """Check that a student's method trains on unlabelled cases."""
    method = method_of(student)
    if not method.needs_unlabelled:
        raise UserError(
            f"self_train: the method of the student {student.name} is {type(method).__name__}, which trains on "
            "labelled cases alone; expected a semi-supervised one, such as experiment=ssl_light or pseudo_light"
        )


def _predictor(checkpoint: Path, config: DictConfig) -> Predictor:
    """Predicts with a checkpoint on the device that the training was given."""
    bundle, engine = load_engine(checkpoint, device=training.device_to_predict(config.trainer))
    return Predictor(bundle, engine=engine)


def _pseudo_label(dataset: Dataset, checkpoint: Path, folder: Path, student: DictConfig) -> None:
    """Segment the unlabelled CTs."""
    # Replaces the label maps of a network that was trained further since.
    images = [case.image for case in dataset.unlabelled]
    with _without_failed_cases(student.strict):
        predict_files(_predictor(checkpoint, student), images, folder, replace=True)


def _keep(dataset: Dataset, layout: SelfTrainingLayout, number: int, agreement: float, workers: int | None) -> Path:
    """Keep the label maps of a round that agree with those of the round before, and return their folder."""
    before, now = (
        {case.name: case.pseudo_label for case in with_pseudo_labels(dataset, folder).unlabelled}
        for folder in (layout.round(number - 1).pseudo_labels, layout.round(number).pseudo_labels)
    )
    kept = layout.round(number).kept
    count = keep_agreeing(before, now, kept, dataset.labels, agreement, workers)
    print(f"kept {count} of {len(now)} unlabelled cases, see {KeptLayout(kept).table}")
    return kept


def _cases_to_score(config: DictConfig) -> tuple[list[Case], str]:
    """The test cases with labels, or the validation cases where the test labels are not public, and which these are."""
    dataset = dataset_of(config)
    cases, part = [case for case in dataset.test if case.label is not None], "test"
    if not cases:
        print(f"{config.data.root}: no test case has a label map; the validation cases are scored instead")
        cases, part = list(dataset.validation), "validation"
    if not cases:
        raise UserError(f"{config.data.root}: no test or validation case has a label map; train with test=false")
    return cases, part


def _changed_at(path: Path) -> int | None:
    """When a file was written last; None if there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _is_scored(run: RunFolder, cases: Sequence[Case]) -> bool:
    """Whether all cases have been scored with the checkpoint that is there."""
    scores = ScoresLayout(run.scores)
    try:
        scored = json.loads(scores.references.read_text()).keys()
        return scored == {case.name for case in cases} and scores.table.stat().st_mtime >= run.trained.stat().st_mtime
    except (OSError, ValueError, AttributeError):
        return False


def _score(cases: Sequence[Case], part: str, run: RunFolder, config: DictConfig) -> None:
    """Segment and score cases; the results are written to the run folder."""
    predictor = _predictor(run.trained, config)
    # Replaces predictions of an earlier, shorter training of this run.
    images = [case.image for case in cases]
    with _without_failed_cases(config.strict):
        predict_files(predictor, images, run.predictions, replace=True)
    names = {case.name for case in cases}
    segmented = {label_name(path, names) for path in list_volumes(run.predictions)}
    references = {case.name: case.label for case in cases if case.label is not None and case.name in segmented}
    labels = predictor.bundle.labels
    with _without_failed_cases(config.strict):
        evaluate_folder(run.predictions, references, run.scores, labels, workers=config.data.workers, part=part)


@contextmanager
def _without_failed_cases(strict: bool) -> Iterator[None]:
    """Warn of cases that failed and go on with the others, as preparation does; with ``strict``, stop."""
    try:
        yield
    except SomeCasesFailed as error:
        if strict:
            raise
        logger.warning("warning: %s", error)
