"""The OpenVINO engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlunet.inference.engines.base import Engine, register_engine
from dlunet.inference.graphs import graph_of, why_no_graph
from dlunet.networks import Bundle

#: OpenVINO's names of the precisions.
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@register_engine("openvino")
class OpenVinoEngine(Engine):
    """OpenVINO on a CPU; it uses one thread per core."""

    precisions = tuple(HINTS)
    packages = ("onnx", "openvino")
    extra = "openvino"
    formats = ("openvino", "onnx")
    auto_rank = {"cpu": 2}  # noqa: RUF012

    def __init__(self, model: bytes | Path, precision: str = "float32") -> None:
        import openvino

        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
        core = openvino.Core()
        self.request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
        self.name = f"openvino on cpu, {precision}"

    @classmethod
    def why_not(cls, network: nn.Module) -> str | None:
        """It runs networks that can be written as an ONNX graph."""
        return why_no_graph(network)

    @classmethod
    def from_bundle(cls, bundle: Bundle, device: str, precision: str) -> OpenVinoEngine:
        """The bundle's network as an ONNX graph."""
        return cls(graph_of(bundle), precision)

    @classmethod
    def from_export(cls, model: Path, device: str, precision: str) -> OpenVinoEngine:
        """An ONNX file, or an OpenVINO model."""
        return cls(model, precision)

    def __call__(self, tiles: Tensor) -> Tensor:
        """The logits of a tile."""
        tile = np.ascontiguousarray(tiles, np.float32)
        return torch.from_numpy(self.request.infer([tile], share_inputs=True, share_outputs=True)[0])
