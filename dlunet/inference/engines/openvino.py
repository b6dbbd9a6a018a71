"""The OpenVINO engine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlunet.inference.engines.base import register_engine
from dlunet.inference.engines.graph_engine import GraphEngine

logger = logging.getLogger(__name__)

#: OpenVINO's names of the precisions.
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@register_engine("openvino")
class OpenVinoEngine(GraphEngine):
    """OpenVINO on a CPU; it uses one thread per core."""

    precisions = tuple(HINTS)
    packages = ("onnx", "openvino")
    extra = "openvino"
    formats = ("openvino", "onnx")
    auto_rank = {"cpu": 2}  # noqa: RUF012

    def __init__(self, model: bytes | Path, device: str, precision: str) -> None:
        import openvino

        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model), "CPU", options)
        self.request = compiled.create_infer_request()
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != HINTS[precision]:
            names = {hint: name for name, hint in HINTS.items()}
            logger.warning(
                "warning: precision=%s: OpenVINO uses %s on this processor", precision, names.get(used, used)
            )
            precision = names.get(used, used)
        self.name = f"openvino on {device}, {precision}"

    def __call__(self, tiles: Tensor) -> Tensor:
        """The logits of a tile."""
        tile = np.ascontiguousarray(tiles, np.float32)
        return torch.from_numpy(self.request.infer([tile], share_inputs=True, share_outputs=True)[0])
