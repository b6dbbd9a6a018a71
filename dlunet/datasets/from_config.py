"""Open the dataset described by a config."""

from __future__ import annotations

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from dlunet.datasets.cases import Dataset
from dlunet.errors import UserError


def dataset_of(config: DictConfig) -> Dataset:
    """The cases of a composed config's dataset, see ``conf/data``.

    Raises:
        UserError: They cannot be read.
    """
    try:
        return instantiate(config.data.source)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):  # Hydra wraps what the dataset's function raises
            raise error.__cause__ from None
        raise
