"""Prepare cases for a network: fingerprint, plan, clipping, normalisation, resampling, storage on disk."""

from dlunet.preparation.doctor import Diagnosis, examine
from dlunet.preparation.fingerprint import Fingerprint, take_fingerprint
from dlunet.preparation.plan import Intensity, Plan
from dlunet.preparation.prepare import PreparedDataset, check_size, normalise, prepare_dataset, prepare_image
from dlunet.preparation.resampling import resample, resample_labels
from dlunet.preparation.sharing import SharedFolder
from dlunet.preparation.store import PreparedCase

__all__ = [
    "Diagnosis",
    "Fingerprint",
    "Intensity",
    "Plan",
    "PreparedCase",
    "PreparedDataset",
    "SharedFolder",
    "check_size",
    "examine",
    "normalise",
    "prepare_dataset",
    "prepare_image",
    "resample",
    "resample_labels",
    "take_fingerprint",
]
