"""A training run, from its config to its checkpoints."""

from __future__ import annotations

import json
import logging
import os
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
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from dlunet.datasets import Dataset, with_pseudo_labels
from dlunet.errors import UserError
from dlunet.files import write_text
from dlunet.networks import UNet, build_network
from dlunet.networks.bundle import read_checkpoint
from dlunet.preparation import Fingerprint, PreparedDataset, SharedFolder, prepare_dataset, take_fingerprint
from dlunet.preparation.planning import REFERENCE_GB, plan_spacing, plan_topology
from dlunet.provenance import provenance
from dlunet.sampling import PatchDataModule
from dlunet.signals import Stopped
from dlunet.training.checkpoint import MovableCheckpoint
from dlunet.training.metrics_file import metrics_logger
from dlunet.training.module import SegmentationModule

log = logging.getLogger(__name__)

#: Settings that may differ between a run and its continuation.
FREE_ON_RESUME = (
    "resume",
    "output",
    "logger",
    "strict",
    "test",
    "trainer.max_epochs",
    "data.workers",
    "data.source.workers",
    "sampling.num_workers",
)


def train(config: DictConfig) -> Path:
    """Prepare the data, train, and return the best checkpoint.

    Args:
        config: The composed config, see ``conf/train.yaml``.

    Raises:
        UserError: The data, the config or the run folder cannot be used.
    """
    output = Path(config.output)
    check_login(config.logger)
    complete_plan(config)
    resume_from = _claim_folder(config, output)
    log.info("scale=%s on %s; run folder %s", config.scale.name, _device_name(config), output)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    shared = SharedFolder(prepared_folder(config))
    try:
        return _fit(config, output, prepare(config, shared), resume_from)
    finally:
        shared.close()


def _fit(config: DictConfig, output: Path, prepared: PreparedDataset, resume_from: Path | None) -> Path:
    epochs_done = _epochs_done(resume_from, config.trainer.max_epochs)
    write_text(output / "labels.json", json.dumps(prepared.labels.to_dict(), indent=2))
    module = build_module(config, prepared)
    datamodule = PatchDataModule(
        prepared, module.method, instantiate(config.augmentation, _convert_="all"), seed=config.seed, **config.sampling
    )
    with warnings.catch_warnings():
        _silence_lightning()
        trainer = build_trainer(config, output, can_choose(prepared), epochs_done)
        datamodule.check(trainer.world_size)
        try:
            trainer.fit(module, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
        except Stopped:
            log.info("%s: the last epoch that was finished is kept; add resume=auto to continue from it", output)
            raise
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that reads patches was killed, probably out of memory ({str(error).splitlines()[0]}); use "
                "fewer: sampling.num_workers=0; add resume=auto to continue from the last epoch that was finished"
            ) from None
        finally:
            wandb.finish()  # else the next run of a sweep would go on writing into this one
    checkpoints = output / "checkpoints"
    best = checkpoints / "best.ckpt"
    return best if best.exists() else checkpoints / "last.ckpt"


def complete_plan(config: DictConfig) -> None:
    """Fill in what a config leaves open of the plan and the network, by nnU-Net's rules from the labelled cases."""
    plan, network = config.plan, config.network
    if None not in (plan.spacing, plan.patch_size, network.features, network.strides, network.kernel_sizes):
        return
    dataset = instantiate(config.data.source)
    found = _fingerprint(config, dataset)
    plan.spacing = list(plan.spacing or plan_spacing(found))
    patch = plan.patch_size and tuple(plan.patch_size)
    chosen = plan_topology(found, plan.spacing, dataset.labels.num_classes, plan.get("memory_gb", REFERENCE_GB), patch)
    plan.patch_size = list(plan.patch_size or chosen.patch_size)
    for part in ("features", "strides", "kernel_sizes"):
        network[part] = network[part] or getattr(chosen, part)


def prepared_folder(config: DictConfig) -> Path:
    """Where the cases of a config whose plan is complete are prepared: another spacing has a folder of its own."""
    return Path(config.data.prepared) / "x".join(f"{mm:g}" for mm in config.plan.spacing)


def prepare(config: DictConfig, shared: SharedFolder | None = None) -> PreparedDataset:
    """Open the dataset and bring its cases up to date; without the unlabelled ones where the method uses none.

    Args:
        config: The composed config.
        shared: See :func:`dlunet.preparation.prepare_dataset`.
    """
    complete_plan(config)
    dataset = instantiate(config.data.source)
    if instantiate(config.method).num_networks == 1:
        dataset = replace(dataset, unlabelled=())
    elif config.data.pseudo_labels is not None:
        dataset = with_pseudo_labels(dataset, Path(config.data.pseudo_labels))
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
    write_text(folder / "plan.yaml", OmegaConf.to_yaml(OmegaConf.create(described)))
    return prepared


def _fingerprint(config: DictConfig, dataset: Dataset) -> Fingerprint:
    cache = Path(config.data.prepared) / "fingerprint.json"
    return take_fingerprint(dataset.fingerprinted, dataset.labels.num_classes, cache, config.data.workers)


def build_module(config: DictConfig, prepared: PreparedDataset) -> SegmentationModule:
    """The networks, the method and the loss of a config."""
    method = instantiate(config.method)
    description = {**_plain(config.network), "num_classes": prepared.labels.num_classes}
    networks = _build_networks(description, method.num_networks)
    _check_patch(networks[0], prepared.plan.patch_size)
    return SegmentationModule(
        networks=networks,
        network_description=description,
        method=method,
        loss=instantiate(config.loss),
        optimizer=instantiate(config.optimizer.algorithm),
        schedule=instantiate(config.optimizer.schedule),
        gradient_clip=config.optimizer.gradient_clip,
        plan=prepared.plan,
        labels=prepared.labels,
        seed=config.seed,
    )


def build_trainer(config: DictConfig, output: Path, has_validation: bool, epochs_done: int) -> lightning.Trainer:
    """Lightning's trainer with the run's callbacks and loggers."""
    settings: dict[str, Any] = dict(config.trainer)
    if _is_distributed(settings.get("devices", 1)):
        # Spawned processes also work inside a sweep; the coarsest head has no loss, so its gradient is missing.
        settings.setdefault("strategy", "ddp_spawn_find_unused_parameters_true")
    loggers = _loggers(config, output, epochs_done)
    try:
        return lightning.Trainer(
            **settings,
            default_root_dir=output,
            callbacks=_callbacks(output, has_validation),
            logger=loggers,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,  # the data module gives every process its own cases
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if has_validation else 0,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {error}; check the trainer settings") from None


def _claim_folder(config: DictConfig, output: Path) -> Path | None:
    """Record the run in its folder and return the checkpoint to continue from, if any."""
    last = output / "checkpoints" / "last.ckpt"
    settings = _plain(config)
    if last.exists():
        if config.resume != "auto":
            raise UserError(
                f"{output}: already holds a run; add resume=auto to continue it, or output=FOLDER to start another"
            )
        _check_same_settings(OmegaConf.to_container(OmegaConf.load(output / "config.yaml")), settings, output)
    write_text(output / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))
    write_text(output / "provenance.json", json.dumps(provenance(), indent=2))
    return last if last.exists() else None


def _plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain dictionaries and lists, its references resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _epochs_done(checkpoint: Path | None, wanted: int) -> int:
    done = 0 if checkpoint is None else int(read_checkpoint(checkpoint)["epoch"]) + 1
    if done > wanted:
        raise UserError(
            f"trainer.max_epochs: found {wanted}; expected at least {done}, as many as {checkpoint} has behind it; or "
            "start another run with output=FOLDER"
        )
    return done


def _check_same_settings(before: Any, now: dict, output: Path) -> None:
    def flat(values: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(values, dict):
            return {prefix: values}
        return {k: v for key, value in values.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}

    old, new = flat(before), flat(now)
    free = tuple(f"{name}." for name in FREE_ON_RESUME)
    changed = [k for k in old | new if old.get(k) != new.get(k) and not f"{k}.".startswith(free)]
    if changed:
        differences = "; ".join(f"{key}: found {old.get(key)}, now {new.get(key)}" for key in sorted(changed))
        raise UserError(
            f"{output}: holds a run with other settings ({differences}); set them back, or use output=FOLDER"
        )


def _build_networks(description: dict[str, Any], count: int) -> list[UNet]:
    try:
        return [build_network(description) for _ in range(count)]
    except (TypeError, ValueError) as error:
        raise UserError(f"network: {error}; check the network settings") from None


def _check_patch(network: UNet, patch_size: tuple[int, int, int]) -> None:
    if any(size % step for size, step in zip(patch_size, network.total_stride, strict=True)):
        raise UserError(
            f"plan.patch_size: found {list(patch_size)}; expected multiples of the network's total stride "
            f"{list(network.total_stride)}"
        )


def can_choose(prepared: PreparedDataset) -> bool:
    """Whether the validation cases tell a better network from a worse one; say so where they should and do not."""
    if prepared.validation and not any(case.ranges for case in prepared.validation):
        log.warning(
            "warning: none of the %d validation cases shows an organ: no epoch is the best, and the last one counts",
            len(prepared.validation),
        )
    return any(case.ranges for case in prepared.validation)


def _callbacks(output: Path, has_validation: bool) -> list[Callback]:
    folder = output / "checkpoints"
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
        f"logger.offline=false: Weights & Biases cannot be used ({reason}); run `wandb login` or set WANDB_API_KEY, check "
        "the network, or leave the run offline and upload it later with `wandb sync`: logger.offline=true"
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
