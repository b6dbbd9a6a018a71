"""Open the dataset described by a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from dlunet.datasets.cases import Case, Dataset, first_problem
from dlunet.errors import UserError, cannot_be_opened


def dataset_of(config: DictConfig) -> Dataset:
    """The cases of a composed config's dataset, see ``conf/data``.

    Raises:
        UserError: They cannot be read.
    """
    try:
        dataset = instantiate(config.data.source)
    except InstantiationException as error:
        cause = error.__cause__  # Hydra wraps what the dataset's function raises
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, OSError):
            raise cannot_be_opened(cause.filename or config.data.root, cause) from None
        raise
    if not isinstance(dataset, Dataset):
        raise UserError(f"data.source: found {type(dataset).__name__}; expected a function that returns a Dataset")
    if not dataset.labelled:
        raise UserError(
            f"{config.data.root}: found no labelled cases; check data.root{first_problem(dataset.problems)}"
        )
    # Training and validation cases share one folder of prepared cases, and all folds one fingerprint.
    prepared = (*dataset.labelled, *dataset.validation)
    others = set(dataset.pool) - set(prepared)
    for cases in ((*prepared, *others), dataset.unlabelled, dataset.test):
        _check_names(config.data.root, cases)
    return dataset


def _check_names(root: str, cases: Sequence[Case]) -> None:
    known: dict[str, Path] = {}
    for case in cases:
        if case.name in known:
            raise UserError(
                f"{root}: found the case {case.name} more than once ({known[case.name]} and {case.image}); expected "
                "unique names; rename one"
            )
        known[case.name] = case.image
