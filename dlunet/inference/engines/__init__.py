"""Engines that run a trained network: compiled code, OpenVINO, ONNX Runtime or PyTorch; each registers itself."""

from importlib import import_module
from pkgutil import iter_modules

from dlunet.inference.engines.base import ENGINES, Engine, EngineUnavailable, register_engine
from dlunet.inference.engines.choice import load_engine, make_engine
from dlunet.inference.engines.pytorch import TorchEngine

for module in iter_modules(__path__):  # a new engine only needs a file here
    import_module(f"{__name__}.{module.name}")

__all__ = ["ENGINES", "Engine", "EngineUnavailable", "TorchEngine", "load_engine", "make_engine", "register_engine"]
