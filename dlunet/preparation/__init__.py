"""From files to prepared cases: fingerprint, plan, clipping, normalisation, resampling, the store on disk."""

from dlunet.preparation.fingerprint import foreground_intensity
from dlunet.preparation.plan import Intensity, Plan
from dlunet.preparation.prepare import PreparedDataset, normalise, prepare_dataset, prepare_image
from dlunet.preparation.resampling import resample, resample_labels
from dlunet.preparation.store import PreparedCase

__all__ = [
    "Intensity",
    "Plan",
    "PreparedCase",
    "PreparedDataset",
    "foreground_intensity",
    "normalise",
    "prepare_dataset",
    "prepare_image",
    "resample",
    "resample_labels",
]
