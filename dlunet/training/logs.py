"""What a training logs, in this process and in those that it starts: lines on the screen and in ``train.log``."""

from __future__ import annotations

import logging
import sys
import warnings
from multiprocessing import parent_process

import lightning
from lightning.pytorch.callbacks import Callback

from dlunet.run_layout import RunLayout
from dlunet.training.full_disk import LogFile


class LogOfProcesses(Callback):
    """Sets up logging in processes that the training has started, which know nothing of it.

    Args:
        folder: The run folder; None: nothing is written, as in a dry run.
    """

    def __init__(self, folder: RunLayout | None) -> None:
        self.folder = folder

    def setup(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        """Log as the process that has started this one does; the first one for all."""
        if parent_process() is None:
            return
        silence_lightning()
        if trainer.is_global_zero and not logging.getLogger().handlers:
            handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
            if self.folder is not None:
                handlers.append(LogFile(self.folder.log, encoding="utf-8"))
            logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)
        elif not trainer.is_global_zero:
            be_silent()


def be_silent() -> None:
    """Log errors only: the first process says the same."""
    logging.getLogger("dlunet").setLevel(logging.ERROR)


def silence_lightning() -> None:
    """Suppress Lightning's banners and its advice on settings that are deliberate here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*exists and is not empty.*",  # a resumed run
        ".*dataloader is not resumable.*",  # the data module gives a resumed epoch the patches that are left
        ".*in eval mode at the start of training.*",  # fixed networks
        ".*LeafSpec.*",
        r".*`lr_scheduler\.step\(\)` before",  # mixed precision skips a first step whose gradients overflow
    ):
        warnings.filterwarnings("ignore", message)
