"""List the cases of a dataset by folder layout; synthetic abdomens serve as the default dataset."""

from dlunet.datasets.cases import Case, Dataset, with_pseudo_labels
from dlunet.datasets.dataset_json import labels_of, read_dataset_json
from dlunet.datasets.flare22 import read_flare22
from dlunet.datasets.folders import read_folders
from dlunet.datasets.from_config import dataset_of
from dlunet.datasets.msd import read_msd
from dlunet.datasets.nnunet_raw import read_nnunet_raw
from dlunet.datasets.reading import read_case
from dlunet.datasets.splits import draw_folds, split_cases
from dlunet.datasets.synthetic import open_phantoms

__all__ = [
    "Case",
    "Dataset",
    "dataset_of",
    "draw_folds",
    "labels_of",
    "open_phantoms",
    "read_case",
    "read_dataset_json",
    "read_flare22",
    "read_folders",
    "read_msd",
    "read_nnunet_raw",
    "split_cases",
    "with_pseudo_labels",
]
