"""A training run, from its config to its checkpoints."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning
import torch
import wandb
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dlunet.datasets import Dataset, with_pseudo_labels
from dlunet.errors import UserError
from dlunet.files import write_if_changed, write_text
from dlunet.labels import LabelSet
from dlunet.methods import Fixed, Trained
from dlunet.networks import build_network, load_bundle
from dlunet.parallel import end_processes
from dlunet.preparation import Fingerprint, PreparedDataset, SharedFolder, prepare_dataset, take_fingerprint
from dlunet.preparation.planning import REFERENCE_GB, plan_spacing, plan_topology
from dlunet.sampling import PatchDataModule, check_workers
from dlunet.signals import Stopped
from dlunet.training.checkpoint import MovableCheckpoint, WholeCheckpointIO
from dlunet.training.metrics_file import metrics_logger
from dlunet.training.module import SegmentationModule
from dlunet.training.run_folder import RunFolder

log = logging.getLogger(__name__)

#: Seconds after which a signal that ended a process that this one has started has reached this one as well.
SIGNAL_DELAY = 1.0

#: The parts of a dataset that a run trains and validates on.
PARTS = ("labelled", "unlabelled", "validation")


def train(config: DictConfig) -> Path:
    """Prepare the data, train, and return the best checkpoint.

    Args:
        config: The composed config, see ``conf/train.yaml``.

    Raises:
        UserError: The data, the config or the run folder cannot be used.
    """
    folder = RunFolder(Path(config.output))
    folder.check_free(config.resume == "auto")
    check_login(config.logger)
    dataset = open_dataset(config)
    complete_plan(config, dataset)
    streams = instantiate(config.method).streams.values()
    images = sum(stream.times * (len(stream.views) + stream.labelled) for stream in streams)
    check_workers(config.sampling.num_workers, config.sampling.batch_size, config.plan.patch_size, images)
    with folder.writing():
        epochs_done = folder.begin(_plain(config))
        log.info("scale=%s on %s; run folder %s", config.scale.name, _device_name(config), folder.path)
        lightning.seed_everything(config.seed, workers=True, verbose=False)
        shared = SharedFolder(prepared_folder(config))
        try:
            _fit(config, folder, prepare(config, dataset, shared), epochs_done)
        finally:
            shared.close()
    return folder.trained


def _fit(config: DictConfig, folder: RunFolder, prepared: PreparedDataset, epochs_done: int) -> None:
    folder.keep_cases({part: [case.name for case in getattr(prepared, part)] for part in PARTS})
    write_text(folder.path / "labels.json", json.dumps(prepared.labels.to_dict(), indent=2))
    module = build_module(config, prepared)
    datamodule = PatchDataModule(
        prepared, module.method, instantiate(config.augmentation, _convert_="all"), seed=config.seed, **config.sampling
    )
    with warnings.catch_warnings():
        _silence_lightning()
        trainer = build_trainer(config, folder, can_choose(prepared), epochs_done)
        datamodule.check_cases(trainer.world_size)
        try:
            resume_from = folder.last if epochs_done else None
            trainer.fit(module, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
        except (Stopped, SIGTERMException) as stop:  # Lightning's own, in a process that it started
            end_processes()
            log.info("%s: the last epoch that was finished is kept; add resume=auto to continue from it", folder.path)
            raise stop if isinstance(stop, Stopped) else Stopped(signal.SIGTERM) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            time.sleep(SIGNAL_DELAY)  # one that was sent to all processes comes first
            raise UserError(
                f"a process that reads patches was killed, probably out of memory ({str(error).splitlines()[0]}); use "
                "fewer: sampling.num_workers=0; add resume=auto to continue from the last epoch that was finished"
            ) from None
        finally:
            wandb.finish()  # else the next run of a sweep would go on writing into this one


def open_dataset(config: DictConfig) -> Dataset:
    """The cases of a config's dataset; without the unlabelled ones where the method uses none."""
    dataset = instantiate(config.data.source)
    if not instantiate(config.method).needs_unlabelled:
        return replace(dataset, unlabelled=())
    if config.data.pseudo_labels is not None:
        return with_pseudo_labels(dataset, Path(config.data.pseudo_labels))
    return dataset


def complete_plan(config: DictConfig, dataset: Dataset) -> None:
    """Fill in what a config leaves open of the plan and the network, by nnU-Net's rules from the labelled cases."""
    plan = config.plan
    described = {trained.config: _described(config, trained) for trained in instantiate(config.method).trained.values()}
    # A network that is not a U-Net has none of these settings.
    left_open = [
        (network, part)
        for network in described.values()
        for part in ("features", "strides", "kernel_sizes")
        if network.get(part, ...) is None
    ]
    if None not in (plan.spacing, plan.patch_size) and not left_open:
        return
    found = _fingerprint(config, dataset)
    plan.spacing = list(plan.spacing or plan_spacing(found))
    patch = plan.patch_size and tuple(plan.patch_size)
    chosen = plan_topology(found, plan.spacing, dataset.labels.num_classes, plan.get("memory_gb", REFERENCE_GB), patch)
    plan.patch_size = list(plan.patch_size or chosen.patch_size)
    for network, part in left_open:
        network[part] = getattr(chosen, part)


def prepared_folder(config: DictConfig) -> Path:
    """Where the cases of a config whose plan is complete are prepared: another spacing has a folder of its own."""
    return Path(config.data.prepared) / "x".join(f"{mm:g}" for mm in config.plan.spacing)


def prepare(config: DictConfig, dataset: Dataset | None = None, shared: SharedFolder | None = None) -> PreparedDataset:
    """Bring the cases of a config up to date.

    Args:
        config: The composed config.
        dataset: Its cases, see :func:`open_dataset`.
        shared: See :func:`dlunet.preparation.prepare_dataset`.
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
        _fingerprint(config, dataset),
        shared,
    )
    described = {"plan": prepared.plan.to_dict(), "network": _plain(config.network)}
    write_if_changed(folder / "plan.yaml", OmegaConf.to_yaml(OmegaConf.create(described)))
    return prepared


def _fingerprint(config: DictConfig, dataset: Dataset) -> Fingerprint:
    cache = Path(config.data.prepared) / "fingerprint.json"
    return take_fingerprint(dataset.fingerprinted, dataset.labels.num_classes, cache, config.data.workers)


def build_module(config: DictConfig, prepared: PreparedDataset) -> SegmentationModule:
    """The networks, the method and the loss of a config."""
    method = instantiate(config.method)
    classes = {"num_classes": prepared.labels.num_classes}
    descriptions = {role: {**_plain(_described(config, kind)), **classes} for role, kind in method.trained.items()}
    networks = {role: _build_network(description) for role, description in descriptions.items()}
    for network in networks.values():
        _check_patch(network, prepared.plan.patch_size)
    networks |= {role: _load_fixed(kind, prepared.labels) for role, kind in method.fixed.items()}
    source = method.averaged[method.predicts].of if method.predicts in method.averaged else method.predicts
    return SegmentationModule(
        networks=networks,
        network_description=descriptions[source],
        method=method,
        loss=instantiate(config.loss),
        pseudo_loss=instantiate(config.pseudo_loss),
        optimizer=instantiate(config.optimizer.algorithm),
        schedule=instantiate(config.optimizer.schedule),
        gradient_clip=config.optimizer.gradient_clip,
        plan=prepared.plan,
        labels=prepared.labels,
        seed=config.seed,
    )


def build_trainer(config: DictConfig, folder: RunFolder, has_validation: bool, epochs_done: int) -> lightning.Trainer:
    """Lightning's trainer with the run's callbacks and loggers."""
    settings: dict[str, Any] = dict(config.trainer)
    plugins: list[Any] = [WholeCheckpointIO()]
    if "strategy" not in settings and settings.get("num_nodes", 1) == 1:
        # This process starts all others itself: what a batch system says of its tasks is not about them.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
        os.environ.pop("LOCAL_RANK", None)
        plugins.append(LightningEnvironment())
    if _is_distributed(settings.get("devices", 1)):
        # Spawned processes also work inside a sweep; the coarsest head has no loss, so its gradient is missing.
        settings.setdefault("strategy", "ddp_spawn_find_unused_parameters_true")
    loggers = _loggers(config, folder.path, epochs_done)
    try:
        return lightning.Trainer(
            **settings,
            plugins=plugins,
            default_root_dir=folder.path,
            callbacks=_callbacks(folder.checkpoints, has_validation),
            logger=loggers,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,  # the data module gives every process its own cases
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if has_validation else 0,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"trainer: {error}; check the trainer settings") from None


def _plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain dictionaries and lists, its references resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _described(config: DictConfig, trained: Trained) -> DictConfig:
    """The description of a network that a method trains.

    Raises:
        UserError: The config has none of this name.
    """
    if trained.config not in config:
        raise UserError(
            f"method: trains a network that {trained.config} describes, and the config has no {trained.config}; add "
            f"- /network@_global_.{trained.config}: plain to the defaults of the method's config"
        )
    return config[trained.config]


def _build_network(description: dict[str, Any]) -> nn.Module:
    try:
        return build_network(description)
    except (TypeError, ValueError) as error:
        raise UserError(f"network: {error}; check the network settings") from None


def _load_fixed(fixed: Fixed, labels: LabelSet) -> nn.Module:
    bundle = load_bundle(Path(fixed.checkpoint))
    if bundle.labels != labels:
        raise UserError(
            f"{fixed.checkpoint}: segments {', '.join(label.name for label in bundle.labels)}; expected the labels of "
            f"the dataset: {', '.join(label.name for label in labels)}"
        )
    assert bundle.network is not None
    return bundle.network


def _check_patch(network: nn.Module, patch_size: tuple[int, int, int]) -> None:
    total_stride = getattr(network, "total_stride", (1, 1, 1))
    if any(size % step for size, step in zip(patch_size, total_stride, strict=True)):
        raise UserError(
            f"plan.patch_size: found {list(patch_size)}; expected multiples of the network's total stride "
            f"{list(total_stride)}"
        )


def can_choose(prepared: PreparedDataset) -> bool:
    """Whether the validation cases tell a better network from a worse one; say so where they should and do not."""
    if prepared.validation and not any(case.ranges for case in prepared.validation):
        log.warning(
            "warning: none of the %d validation cases shows an organ: no epoch is the best, and the last one counts",
            len(prepared.validation),
        )
    return any(case.ranges for case in prepared.validation)


def _callbacks(folder: Path, has_validation: bool) -> list[Callback]:
    last = MovableCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    best = MovableCheckpoint(folder, "best", "val/dsc", mode="max", enable_version_counter=False)
    return [last, *([best] if has_validation else []), RichProgressBar(leave=False)]


def check_login(logger: DictConfig) -> None:
    """Make sure that a run can be sent to Weights & Biases before any work is done for it.

    Raises:
        UserError: It is to be sent, and there is no login, or the server cannot be reached.
    """
    if not _uses_wandb(logger) or logger.offline:
        return
    try:
        if wandb.login(timeout=60):
            return
        reason = "no API key"
    except wandb.Error as error:
        reason = str(error)
    raise UserError(
        f"logger.offline=false: Weights & Biases cannot be used ({reason}); run `wandb login` or set WANDB_API_KEY, "
        "check the network, or leave the run offline and upload it later with `wandb sync`: logger.offline=true"
    )


def _uses_wandb(logger: DictConfig) -> bool:
    return "WandbLogger" in logger.get("_target_", "") and os.environ.get("WANDB_MODE") != "disabled"


def _loggers(config: DictConfig, output: Path, epochs_done: int) -> list[Logger]:
    """The logger of choice, and always metrics.csv: the report reads it."""
    loggers: list[Logger] = [metrics_logger(output, epochs_done)]
    if "_target_" in config.logger and ("WandbLogger" not in config.logger._target_ or _uses_wandb(config.logger)):
        try:
            loggers.append(instantiate(config.logger))
        except ModuleNotFoundError as error:
            raise UserError(f"logger: {error}; install it with: pip install 'dlunet[tensorboard]'") from None
    return loggers


def _is_distributed(devices: Any) -> bool:
    return len(devices) > 1 if isinstance(devices, list) else str(devices) not in ("1", "auto")


def _device_name(config: DictConfig) -> str:
    if config.trainer.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads"


def _silence_lightning() -> None:
    """Drop Lightning's banners, and its advice on settings that are chosen on purpose here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*smaller than the logging interval.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
