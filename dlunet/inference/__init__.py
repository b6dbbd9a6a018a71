"""Inference: sliding window, resampling to the CT's grid, and prediction of files."""

from dlunet.inference.engines import Engine, EngineUnavailable, TorchEngine, load_engine, make_engine, register_engine
from dlunet.inference.export import export_bundle
from dlunet.inference.inputs import find_images
from dlunet.inference.output_folder import OutputFolder
from dlunet.inference.predict_files import Extras, predict_files
from dlunet.inference.predictor import Predictor
from dlunet.inference.resample_to_input import labels_on_grid
from dlunet.inference.sliding_window import Flips, gaussian_weights, predict_logits, stream_logits, tile_starts

__all__ = [
    "Engine",
    "EngineUnavailable",
    "Extras",
    "Flips",
    "OutputFolder",
    "Predictor",
    "TorchEngine",
    "export_bundle",
    "find_images",
    "gaussian_weights",
    "labels_on_grid",
    "load_engine",
    "make_engine",
    "predict_files",
    "predict_logits",
    "register_engine",
    "stream_logits",
    "tile_starts",
]
