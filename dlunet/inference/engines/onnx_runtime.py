"""The ONNX Runtime engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlunet.inference.engines.base import EngineUnavailable, register_engine
from dlunet.inference.engines.graph_engine import GraphEngine
from dlunet.parallel import available_cores

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@register_engine("onnxruntime")
class OnnxRuntimeEngine(GraphEngine):
    """ONNX Runtime on a CPU, or on a GPU directly or through TensorRT; it uses one thread per core."""

    devices = tuple(PROVIDERS)
    packages = ("onnx", "onnxruntime")
    extra = "onnx"
    formats = ("onnx",)
    auto_rank = {"cpu": 3, "cuda": 2, "tensorrt": 1}  # noqa: RUF012

    def __init__(self, model: bytes | Path, device: str, precision: str) -> None:
        import onnxruntime

        wanted = PROVIDERS[device]
        available = onnxruntime.get_available_providers()
        if wanted not in available:
            raise EngineUnavailable(
                f"device={device}: this ONNX Runtime has no {wanted}, only {', '.join(available)}; install "
                "onnxruntime-gpu, or choose device=cpu"
            )
        content = model.read_bytes() if isinstance(model, Path) else model
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = False  # the arena grows to several times the memory of one tile
        options.intra_op_num_threads = available_cores()  # its own choice ignores the cores that a job may use
        self.session = onnxruntime.InferenceSession(content, options, [wanted])
        if wanted not in self.session.get_providers():  # without the libraries that it needs, it goes on on the CPU
            raise EngineUnavailable(
                f"device={device}: ONNX Runtime could not use its {wanted}, see the messages above; install the CUDA "
                "and cuDNN libraries that it was built for, or choose device=cpu"
            )
        self.input = self.session.get_inputs()[0].name
        self.name = f"onnxruntime on {device}, {precision}"

    def __call__(self, tiles: Tensor) -> Tensor:
        """The logits of a tile."""
        return torch.from_numpy(self.session.run(None, {self.input: np.ascontiguousarray(tiles, np.float32)})[0])
