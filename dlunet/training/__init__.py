"""Training: the LightningModule, the run folder, and the run from config to checkpoints."""

from dlunet.training.dashboards import log_results
from dlunet.training.data import prepare
from dlunet.training.launch import device_to_predict, is_first, joint_launch
from dlunet.training.loggers import closing_loggers
from dlunet.training.module import SegmentationModule
from dlunet.training.run import train
from dlunet.training.run_folder import RunFolder

__all__ = [
    "RunFolder",
    "SegmentationModule",
    "closing_loggers",
    "device_to_predict",
    "is_first",
    "joint_launch",
    "log_results",
    "prepare",
    "train",
]
