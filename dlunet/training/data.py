"""The cases of a config: the dataset and its prepared form."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dlunet.datasets import Dataset, dataset_of, with_pseudo_labels
from dlunet.errors import UserError, WriteError
from dlunet.files import write_if_changed
from dlunet.methods import method_of
from dlunet.preparation import PreparedDataset, SharedFolder, prepare_dataset
from dlunet.shards import ALL, Shard
from dlunet.training.build import plain
from dlunet.training.planning import complete_plan, fingerprint

log = logging.getLogger(__name__)


def open_dataset(config: DictConfig) -> Dataset:
    """The dataset of a config, with those unlabelled cases that the method uses.

    Raises:
        UserError: The cases cannot be read, or the method trains on pseudo-labels and there are none.
    """
    dataset, method = dataset_of(config), method_of(config)
    if not method.needs_unlabelled:
        return replace(dataset, unlabelled=())
    if config.data.pseudo_labels is not None:
        dataset = with_pseudo_labels(dataset, Path(config.data.pseudo_labels))
    elif method.needs_pseudo_labels and dataset.unlabelled:
        raise UserError(
            f"data.pseudo_labels: found null; expected a folder with label maps of the unlabelled cases, which "
            f"{type(method).__name__} trains on; predict them, or let dlunet self_train experiment=pseudo_light do so, "
            "with a teacher that needs none (teacher=sup_light)"
        )
    if {stream.kind for stream in method.streams.values()} == {"labelled", "pseudo-labelled"}:
        return replace(dataset, unlabelled=tuple(case for case in dataset.unlabelled if case.pseudo_label))
    return dataset


def prepared_folder(config: DictConfig) -> Path:
    """The folder of the prepared cases of a config with a complete plan; one folder per spacing."""
    return Path(config.data.prepared) / "x".join(f"{mm:g}" for mm in config.plan.spacing)


def prepare(
    config: DictConfig, dataset: Dataset | None = None, shared: SharedFolder | None = None, shard: Shard = ALL
) -> PreparedDataset:
    """Prepare the cases of a config, as far as they are not up to date.

    Args:
        config: The composed config; its plan is completed.
        dataset: Its cases; by default those of :func:`open_dataset`.
        shared: See :func:`dlunet.preparation.prepare_dataset`.
        shard: See :func:`dlunet.preparation.prepare_dataset`.
    """
    dataset = open_dataset(config) if dataset is None else dataset
    complete_plan(config, dataset)
    folder = prepared_folder(config)
    prepared = prepare_dataset(
        dataset,
        folder,
        config.plan.spacing,
        config.plan.patch_size,
        config.data.workers,
        config.strict,
        fingerprint(config, dataset),
        shared,
        method_of(config).needs_pseudo_labels,
        shard,
    )
    described = {"plan": prepared.plan.to_dict(), "network": plain(config.network)}
    try:
        write_if_changed(folder / "plan.yaml", OmegaConf.to_yaml(OmegaConf.create(described)))
    except WriteError as error:  # the file is for people: cases on a read-only disk serve other networks, too
        log.info("%s; it describes the plan and network of another run", error)
    return prepared


def can_choose(prepared: PreparedDataset) -> bool:
    """Whether the validation cases contain classes, so that a best epoch can be chosen; warn if none of them does."""
    if prepared.validation and not any(case.ranges for case in prepared.validation):
        log.warning(
            "warning: none of the %d validation cases contains any class: no epoch can be the best, so the last one "
            "is used",
            len(prepared.validation),
        )
    return any(case.ranges for case in prepared.validation)
