"""Open the dataset described by a config."""

from __future__ import annotations

from collections import Counter

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from dlunet.datasets.cases import Dataset, first_problem
from dlunet.errors import UserError


def dataset_of(config: DictConfig) -> Dataset:
    """The cases of a composed config's dataset, see ``conf/data``.

    Raises:
        UserError: They cannot be read.
    """
    try:
        dataset = instantiate(config.data.source)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):  # Hydra wraps what the dataset's function raises
            raise error.__cause__ from None
        raise
    if not isinstance(dataset, Dataset):
        raise UserError(f"data.source: found {type(dataset).__name__}; expected a function that returns a Dataset")
    if not dataset.labelled:
        raise UserError(
            f"{config.data.root}: found no labelled cases; check data.root{first_problem(dataset.problems)}"
        )
    for cases in (dataset.labelled, dataset.unlabelled, dataset.validation, dataset.test):
        repeated = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
        if repeated:
            raise UserError(f"{config.data.root}: found the case {repeated[0]} more than once; expected unique names")
    return dataset
