"""Inference: the sliding window, back to the CT's grid, the predictor of files."""

from dlunet.inference.predictor import Predictor, find_images, predict_files, predicted_labels
from dlunet.inference.regrid import labels_on_grid
from dlunet.inference.sliding_window import Flips, gaussian_weights, predict_logits, stream_logits, tile_starts

__all__ = [
    "Flips",
    "Predictor",
    "find_images",
    "gaussian_weights",
    "labels_on_grid",
    "predict_files",
    "predict_logits",
    "predicted_labels",
    "stream_logits",
    "tile_starts",
]
