"""A training run, from config to checkpoints."""

from __future__ import annotations

import json
import logging
import re
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, open_dict
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from dlunet.datasets import Dataset
from dlunet.errors import OUT_OF_MEMORY, UserError
from dlunet.files import write_text
from dlunet.methods import method_of
from dlunet.networks import LightUNet
from dlunet.parallel import end_processes
from dlunet.preparation import PreparedDataset, SharedFolder
from dlunet.sampling import PatchDataModule, check_counts, check_workers, worker_count
from dlunet.signals import ASKING, Stopped, StopRequest
from dlunet.training.build import augmentation_of, build_module, build_networks, callbacks_of, check_parts, plain
from dlunet.training.dashboards import dashboard_callbacks
from dlunet.training.data import can_choose, open_dataset, prepare, prepared_folder
from dlunet.training.early_stopping import check_can_stop, has_stopped
from dlunet.training.faults import KILLED_READER, of_killed_reader
from dlunet.training.launch import (
    is_first,
    joint_launch,
    launched_devices,
    processes_here,
    processes_sharing_cores,
)
from dlunet.training.loggers import check_login, has_dashboard
from dlunet.training.logs import be_silent, silence_lightning
from dlunet.training.metrics_file import values_by_epoch
from dlunet.training.module import SegmentationModule
from dlunet.training.planning import complete_plan
from dlunet.training.run_folder import Done, RunFolder
from dlunet.training.run_plan import RunPlan
from dlunet.training.trainer import build_trainer, check_trainer

log = logging.getLogger(__name__)

#: What PyTorch says that users can act on.
FAULTS = (KILLED_READER, *OUT_OF_MEMORY)

#: How PyTorch begins its message about weights for other networks or another method.
UNFIT = "Error(s) in loading state_dict"

#: What stands before the message of a UserError in the traceback of a process that was started.
USER_ERROR = re.compile(rf"^{re.escape(UserError.__module__)}\.\w+: ", re.MULTILINE)

#: Seconds in which a process that was asked to stop finishes its step and writes a checkpoint.
STEP_PATIENCE = 60.0

#: Seconds within which a signal that ended a child process also reaches this process.
SIGNAL_DELAY = 1.0

#: The parts of a dataset used for training and validation.
PARTS = ("labelled", "unlabelled", "validation")


def train(config: DictConfig) -> Path:
    """Prepare the data, train, and return the best checkpoint.

    To be called within :func:`dlunet.training.closing_loggers`: results may follow.

    Args:
        config: The composed config, see ``conf/train.yaml``.

    Raises:
        UserError: The data, the config or the run folder cannot be used.
    """
    if launch := joint_launch(config.trainer):  # the run can only be resumed with as many processes
        with open_dict(config.trainer):
            config.trainer.update(launched_devices(config.trainer, launch))
            if launch.num_nodes == 1:
                del config.trainer.num_nodes
    folder = RunFolder(Path(config.output))
    folder.check_free(config.resume == "auto")
    check_login(config.logger)
    dataset = open_dataset(config)
    check_parts(config, dataset.labels.num_classes)
    complete_plan(config, dataset)
    streams = method_of(config).streams.values()
    images = sum(stream.times * (len(stream.views) + stream.has_label) for stream in streams)
    patches = config.sampling.batch_size * config.sampling.accumulate_grad_batches * processes_here(config.trainer)
    check_workers(_reader_count(config), patches, config.plan.patch_size, images)
    first = is_first(config.trainer)
    if not first:
        be_silent()
    writes = first and not config.dry_run
    with folder.writing() if writes else nullcontext():
        if writes:
            done = folder.begin(plain(config))
            labels = {case.name: case.pseudo_label for case in dataset.unlabelled if case.pseudo_label}
            folder.keep_pseudo_labels(labels)
        else:
            done = folder.check(plain(config)) if first else folder.done()
        if done.epochs >= config.trainer.max_epochs:
            print(f"{folder.path}: all {done.epochs} epochs were trained before")
            return folder.trained
        if has_stopped(callbacks_of(config), done, config.trainer.get("min_epochs") or 0):
            print(f"{folder.path}: was trained before, and stopped early after {done.epochs} epochs")
            return folder.trained
        _check_unprepared(config, dataset)
        log.info("scale=%s on %s; run folder %s", config.scale.name, _device_name(config), folder.path)
        lightning.seed_everything(config.seed, workers=True, verbose=False)
        shared = SharedFolder(prepared_folder(config))
        try:
            _fit(config, folder, dataset, prepare(config, dataset, shared), done)
        finally:
            shared.close()
        if writes:
            check_unlabelled_helped(config, folder)
    return folder.trained


def check_unlabelled_helped(config: DictConfig, folder: RunFolder) -> None:
    """Warn if the best checkpoint is one of before the unlabelled cases were used."""
    method, dsc = method_of(config), values_by_epoch(folder.path, "val/dsc")
    if not dsc or not method.needs_unlabelled or max(dsc) < method.supervised_epochs:
        return
    best = max(dsc, key=dsc.__getitem__)
    if best < method.supervised_epochs:
        log.warning(
            "the best checkpoint is that after %d of %d epochs, before the unlabelled cases were used: no later epoch "
            "has a higher DSC on the validation cases; try another pseudo_loss=, recipe= or method=",
            best + 1,
            max(dsc) + 1,
        )


def _check_unprepared(config: DictConfig, dataset: Dataset) -> None:
    """Check what can be checked before cases are prepared, which may take hours, besides :func:`check_parts`."""
    method = method_of(config)
    check_counts(
        method.streams,
        {
            "labelled": len(dataset.labelled),
            "unlabelled": len(dataset.unlabelled),
            "pseudo-labelled": sum(case.pseudo_label is not None for case in dataset.unlabelled),
        },
    )
    build_networks(config, method, dataset.labels, config.plan.patch_size)
    check_trainer(config.trainer)
    check_can_stop(callbacks_of(config), bool(dataset.validation))


def _fit(config: DictConfig, folder: RunFolder, dataset: Dataset, prepared: PreparedDataset, done: Done) -> None:
    if is_first(config.trainer) and not config.dry_run:
        folder.keep_cases({part: [case.name for case in getattr(prepared, part)] for part in PARTS})
        write_text(folder.labels, json.dumps(prepared.labels.to_dict(), indent=2))
    module = build_module(config, prepared.plan, prepared.labels)
    _log_execution(config, module)
    sampling = {**config.sampling, "num_workers": _reader_count(config)}
    datamodule = PatchDataModule(prepared, module.method, augmentation_of(config), seed=config.seed, **sampling)
    with warnings.catch_warnings():
        silence_lightning()
        chosen, has_validation = callbacks_of(config), can_choose(prepared)
        check_can_stop(chosen, has_validation)
        callbacks: list[Callback] = [RunPlan(config, prepared), *chosen.values()]
        if has_dashboard(config.logger) and not config.dry_run:
            callbacks += dashboard_callbacks(plain(config), prepared, dataset)
        request = StopRequest()
        trainer = build_trainer(config, folder, has_validation, done.steps, request, callbacks)
        datamodule.check_cases()
        torch.cuda.empty_cache()  # what this process held for predictions, for the processes that train
        try:
            trainer.fit(module, datamodule=datamodule, ckpt_path=done.checkpoint, weights_only=True)
        except (Stopped, ProcessExitedException) as stop:
            raise _stopped(stop, folder) from None
        except (RuntimeError, ProcessRaisedException) as error:  # the latter of a process that was started
            if (message := _for_users(str(error), config, datamodule)) is None:
                raise
            time.sleep(SIGNAL_DELAY)  # a signal sent to all processes takes precedence
            if request.number is not None:
                raise _stopped(Stopped(request.number), folder) from None
            raise UserError(message) from None
        finally:
            datamodule.teardown()
        request.obey()


def _reader_count(config: DictConfig) -> int:
    """How many processes read patches for each process of the training."""
    return worker_count(config.sampling.num_workers, processes_sharing_cores(config.trainer))


def _stopped(error: Stopped | ProcessExitedException, folder: RunFolder) -> BaseException:
    """End the processes of a training that a signal has stopped, say what is kept, and return what to raise."""
    if isinstance(error, ProcessExitedException):  # one that this process has started
        number = error.exit_code - 128 if error.exit_code > 128 else -error.exit_code
        if number not in ASKING:
            return UserError(
                f"a process of the training ended with exit code {error.exit_code}, see the messages above; add "
                "resume=auto to continue"
            )
        error = Stopped(number)
    end_processes(patience=STEP_PATIENCE)
    done = folder.done()
    if done.steps:
        log.info("%s: %d finished steps are kept; add resume=auto to continue from there", folder.path, done.steps)
    return error


def _for_users(text: str, config: DictConfig, datamodule: PatchDataModule) -> str | None:
    """A message about an error of the training, or of a process that it has started; None for an unknown one.

    Args:
        text: The error as text; of a process that was started, this is all there is, with its traceback.
        config: The config.
        datamodule: The patches of this process.
    """
    _, *of_users = USER_ERROR.split(text)
    if of_users:
        return of_users[-1].strip()
    if UNFIT in text:
        return (
            f"{config.output}: its last checkpoint does not fit these networks or this version of the method "
            f"({text.splitlines()[-1].strip()}); start another run: output=FOLDER"
        )
    line = next((line.strip() for line in text.splitlines() if any(known in line for known in FAULTS)), None)
    if line is None:
        return None
    if KILLED_READER in line:
        return of_killed_reader(line, datamodule)
    batch = config.sampling.batch_size
    found = f"plan.patch_size={list(config.plan.patch_size)} sampling.batch_size={batch}"
    smaller = "a smaller batch (sampling.accumulate_grad_batches makes one step of several), " * (batch > 1)
    return (
        f"out of memory ({line}); found {found} trainer.precision={config.trainer.precision}; set {smaller}a smaller "
        "patch, or trainer.precision=16-mixed on a GPU"
    )


def _log_execution(config: DictConfig, module: SegmentationModule) -> None:
    """Say how light U-Nets run on a CPU."""
    light = [network for network in module.networks.values() if isinstance(network, LightUNet)]
    if not light or _uses_gpu(config):
        return
    is_float32 = str(config.trainer.get("precision", "32-true")).startswith("32")
    obstacle = light[0].why_not_compiled if is_float32 else "it computes in float32, not in mixed precision"
    if obstacle:
        log.info("light U-Nets run layer by layer in PyTorch, which takes longer than compiled code: %s", obstacle)
    else:
        log.info("light U-Nets run as compiled code")


def _device_name(config: DictConfig) -> str:
    if _uses_gpu(config):
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads"


def _uses_gpu(config: DictConfig) -> bool:
    return config.trainer.accelerator in ("auto", "gpu") and torch.cuda.is_available()
