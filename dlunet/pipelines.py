"""The commands as functions from config to result, for the command line and for Python (``docs/python.md``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from dlunet import training
from dlunet.datasets import Case, dataset_of
from dlunet.errors import UserError
from dlunet.inference import Extras, Predictor, find_images, load_engine, predict_files
from dlunet.inference.postprocessing import STEPS
from dlunet.inference.sliding_window import FLIPPED_AXES
from dlunet.settings import check_config
from dlunet.training import RunFolder


def train(config: DictConfig) -> Path:
    """Train, score the best checkpoint if ``test`` is set, and return that checkpoint.

    Args:
        config: The config of ``train``.

    Raises:
        UserError: A setting is missing or invalid, or the data or the run folder cannot be used.
    """
    check_config(config)
    cases = _cases_to_score(config) if config.test else []
    best = training.train(config)
    print(f"best checkpoint: {best}")
    if cases:
        _score(cases, RunFolder(Path(config.output)), config.data.workers)
    return best


def self_train(teacher: DictConfig, student: DictConfig, pseudo_labels: Path) -> Path:
    """Train a teacher, pseudo-label the unlabelled CTs, and train a student that crops at them (DLUNet, Fig. 1).

    Finished work is not repeated if both configs have ``resume: auto``.

    Args:
        teacher: The config of the first training.
        student: The config of the second training; its ``data.pseudo_labels`` is set here.
        pseudo_labels: The folder for the teacher's label maps.

    Returns:
        The student's best checkpoint.

    Raises:
        UserError: A setting is missing or invalid, there are too few unlabelled cases, or a training fails.
    """
    for config in (teacher, student):
        check_config(config)
    unlabelled = dataset_of(student).unlabelled
    if len(unlabelled) < 2:  # checked before the teacher is trained, not after
        raise UserError(
            f"{student.data.root}: found {len(unlabelled)} unlabelled cases; expected at least 2; add CTs without "
            "labels (data.unlabelled=FOLDER), or train on the labelled ones alone: dlunet train experiment=sup_light"
        )
    bundle, engine = load_engine(train(teacher))
    images = [case.image for case in unlabelled]
    predict_files(Predictor(bundle, engine=engine), images, pseudo_labels, replace=True)
    student.data.pseudo_labels = str(pseudo_labels)
    return train(student)


def predict(config: DictConfig) -> Path:
    """Segment CTs and return the folder of label maps.

    Args:
        config: The config of ``predict``.

    Raises:
        UserError: A setting, the checkpoint, a CT or the output folder cannot be used.
    """
    check_config(config)
    if config.flips not in FLIPPED_AXES:
        raise UserError(f"flips: found {config.flips!r}; expected one of {', '.join(FLIPPED_AXES)}")
    if not 0 < config.tile_step <= 1:
        raise UserError(f"tile_step: found {config.tile_step}; expected a number greater than 0, at most 1")
    steps = [config.postprocess] if isinstance(config.postprocess, str) else list(config.postprocess)
    if not set(steps) <= set(STEPS):
        raise UserError(
            f"postprocess: found {steps}; expected some of {', '.join(STEPS)}, such as 'postprocess=[largest]'"
        )
    bundle, engine = load_engine(Path(config.checkpoint), config.engine, config.device, config.precision)
    sources = config.input if isinstance(config.input, ListConfig) else [config.input]
    images = [image for source in sources for image in find_images(Path(str(source)))]
    print(f"engine: {engine.name}")
    predictor = Predictor(bundle, config.tile_step, config.flips, engine, tuple(steps))
    extras = Extras(config.volumes, config.overlay, plot=True)
    predict_files(predictor, images, Path(config.output), extras=extras, strict=config.strict)
    return Path(config.output)


def _cases_to_score(config: DictConfig) -> list[Case]:
    """The test cases with labels, or the validation cases where the test labels are not public."""
    dataset = dataset_of(config)
    cases = [case for case in dataset.test if case.label is not None]
    if not cases:
        print(f"{config.data.root}: no test case has a label map; the validation cases are scored instead")
        cases = list(dataset.validation)
    if not cases:
        raise UserError(f"{config.data.root}: no test or validation case has a label map; train with test=false")
    return cases


def _score(cases: Sequence[Case], run: RunFolder, workers: int | None) -> None:
    """Segment and score cases; the results are written to the run folder."""
    from dlunet.evaluation import evaluate_folder  # imports pandas, whose memory training does not need

    bundle, engine = load_engine(run.trained)
    # Replaces predictions of an earlier, shorter training of this run.
    images = [case.image for case in cases]
    predict_files(Predictor(bundle, engine=engine), images, run.predictions, replace=True)
    references = {case.name: case.label for case in cases if case.label is not None}
    evaluate_folder(run.predictions, references, run.scores, bundle.labels, workers=workers)
