"""Fill in open settings of the plan and the networks from the labelled cases, by nnU-Net's rules."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from dlunet.datasets import Dataset
from dlunet.methods import method_of
from dlunet.preparation import Fingerprint, take_fingerprint
from dlunet.preparation.planning import REFERENCE_GB, plan_spacing, plan_topology
from dlunet.training.build import network_config


def complete_plan(config: DictConfig, dataset: Dataset) -> None:
    """Fill in the plan and network settings that a config leaves open.

    Args:
        config: The composed config; its ``plan`` and the descriptions of its trained networks are changed in place.
        dataset: Its cases, see :func:`dlunet.training.data.open_dataset`.

    Raises:
        UserError: The config lacks the description of a network, or a labelled case cannot be read.
    """
    plan = config.plan
    networks = {kind.config: network_config(config, kind) for kind in method_of(config).trained.values()}
    # A network that is not a U-Net has none of these settings.
    left_open = [
        (network, part)
        for network in networks.values()
        for part in ("features", "strides", "kernel_sizes")
        if network.get(part, ...) is None
    ]
    if None not in (plan.spacing, plan.patch_size) and not left_open:
        return
    found = fingerprint(config, dataset)
    plan.spacing = list(plan.spacing or plan_spacing(found))
    patch = plan.patch_size and tuple(plan.patch_size)
    chosen = plan_topology(found, plan.spacing, dataset.labels.num_classes, plan.get("memory_gb", REFERENCE_GB), patch)
    plan.patch_size = list(plan.patch_size or chosen.patch_size)
    for network, part in left_open:
        network[part] = getattr(chosen, part)


def fingerprint(config: DictConfig, dataset: Dataset) -> Fingerprint:
    """The fingerprint of a config's labelled cases, cached in the folder of the prepared cases."""
    cache = Path(config.data.prepared) / "fingerprint.json"
    return take_fingerprint(dataset.fingerprinted, dataset.labels.num_classes, cache, config.data.workers)
