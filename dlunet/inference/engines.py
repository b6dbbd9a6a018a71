"""What runs a trained network: compiled code, OpenVINO, ONNX Runtime or PyTorch, behind one small interface."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dlunet.errors import UserError
from dlunet.inference.export import has_graph, is_export, no_graph, read_export
from dlunet.inference.native import NativeEngine, NativeUnavailable, can_run, find_compiler
from dlunet.networks import Bundle, load_bundle

logger = logging.getLogger(__name__)

PAPERS_PATCH = (56, 160, 160)
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "tensorrt")

#: How many threads ONNX Runtime and OpenVINO use is theirs to choose: as many as there are cores.
ONNX_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class Engine(Protocol):
    """Maps tiles (n, 1, z, y, x) to logits (n, C, z, y, x), which may be overwritten when it is called again.

    Attributes:
        name: What it is and where it runs, such as ``openvino on cpu, float32``.
        device: Where it takes tiles from and leaves logits, as PyTorch names it.
        tiles_at_once: The most tiles that it takes.
    """

    name: str
    device: str
    tiles_at_once: int

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of tiles."""
        ...


class TorchEngine:
    """PyTorch itself."""

    def __init__(
        self, network: nn.Module, device: str = "cpu", precision: str = "float32", tiles_at_once: int = 1
    ) -> None:
        self.network = network.to(device).eval()
        self.device, self.tiles_at_once = device, tiles_at_once
        self.dtype: torch.dtype = getattr(torch, precision)
        self.name = f"torch on {device}, {precision}"

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of tiles."""
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(tiles)


class OnnxRuntimeEngine:
    """ONNX Runtime."""

    tiles_at_once = 1

    def __init__(self, model: bytes, device: str = "cpu") -> None:
        import onnxruntime

        wanted = ONNX_PROVIDERS[device]
        available = onnxruntime.get_available_providers()
        if wanted not in available:
            raise UserError(
                f"device={device}: this ONNX Runtime has no {wanted}, only {', '.join(available)}; install "
                "onnxruntime-gpu, or choose device=cpu"
            )
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = False  # which grows to several times what one tile needs
        self.session = onnxruntime.InferenceSession(model, options, [wanted])
        self.input = self.session.get_inputs()[0].name
        self.device = "cpu"
        self.name = f"onnxruntime on {device}, float32"

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of a tile."""
        return torch.from_numpy(self.session.run(None, {self.input: _contiguous(tiles)})[0])


class OpenVinoEngine:
    """OpenVINO on a CPU."""

    tiles_at_once = 1

    #: What OpenVINO calls the precisions.
    HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # noqa: RUF012

    def __init__(self, model: bytes | Path, precision: str = "float32") -> None:
        import openvino

        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.HINTS[precision]}
        core = openvino.Core()
        self.request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
        self.device = "cpu"
        self.name = f"openvino on cpu, {precision}"

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of a tile."""
        return torch.from_numpy(self.request.infer([_contiguous(tiles)], share_inputs=True, share_outputs=True)[0])


def load_engine(
    checkpoint: Path, engine: str = "auto", device: str = "auto", precision: str = "auto"
) -> tuple[Bundle, Engine]:
    """Load a checkpoint or an exported folder into an engine.

    Args:
        checkpoint: A checkpoint, a .safetensors file, or a folder that ``dlunet export`` wrote.
        engine: One of :data:`ENGINES`; ``auto``: on a GPU torch, else the fastest that can be used.
        device: ``cpu``, ``cuda``, or ``tensorrt`` (ONNX Runtime); ``auto``: the GPU, where there is one.
        precision: Of the network's own arithmetic. ``auto``: float16 on a GPU, else float32.

    Raises:
        UserError: The checkpoint cannot be used, or the engine is not installed or cannot do what is asked.
    """
    asked = (("engine", engine, ENGINES), ("device", device, DEVICES), ("precision", precision, PRECISIONS))
    for name, value, known in asked:
        if value not in known:
            raise UserError(f"{name}: found {value}; expected one of {', '.join(known)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and engine in ("auto", "torch") else "cpu"
    if device == "cuda" and engine in ("auto", "torch") and not torch.cuda.is_available():
        raise UserError("device=cuda: PyTorch finds no GPU; choose device=cpu, or install a PyTorch for GPUs")
    if is_export(checkpoint):
        return _exported(checkpoint, engine, device, precision)
    bundle = load_bundle(checkpoint)
    return bundle, make_engine(bundle, engine, device, precision)


def make_engine(bundle: Bundle, engine: str = "auto", device: str = "cpu", precision: str = "auto") -> Engine:
    """Bring a bundle's network into an engine; see :func:`load_engine`."""
    assert bundle.network is not None
    if engine == "native" or (engine == "auto" and device == "cpu" and precision in ("auto", "float32")):
        try:
            return _native(bundle, device, precision)
        except NativeUnavailable as error:
            if engine == "native":
                raise UserError(f"engine=native: {error}; or choose another engine") from None
            if can_run(bundle.network) and find_compiler():  # it should have worked
                logger.warning("engine=native cannot be used: %s", error)
    name = _chosen(engine, ("torch",) if device == "cuda" or not has_graph(bundle.network) else ONNX_FIRST)
    if precision == "auto":
        precision = "float16" if device == "cuda" and name == "torch" else "float32"
    if name == "torch":
        if device == "tensorrt":
            raise UserError("device=tensorrt: expected engine=onnxruntime, which TensorRT belongs to")
        return TorchEngine(bundle.network, device, precision, _tiles_at_once(bundle.plan.patch_size, device))
    if not has_graph(bundle.network):
        raise UserError(f"engine={name}: {no_graph(bundle.network)}; expected engine=torch, which runs every network")
    from dlunet.networks.onnx_graph import to_onnx

    model = to_onnx(bundle.network, bundle.plan.patch_size)
    return _of_onnx(name, model.SerializeToString(), device, precision)


def _tiles_at_once(patch_size: Sequence[int], device: str) -> int:
    """As many tiles as have the voxels of the paper's patch, which fits a GPU of 2 GB. A CPU is no faster with more."""
    return max(1, prod(PAPERS_PATCH) // prod(patch_size)) if device == "cuda" else 1


def _native(bundle: Bundle, device: str, precision: str) -> Engine:
    if device != "cpu":
        raise UserError(f"device={device}: engine=native runs on the CPU; expected device=cpu")
    if precision not in ("auto", "float32"):
        raise UserError(f"precision={precision}: engine=native computes in float32; expected precision=float32")
    assert bundle.network is not None
    return NativeEngine(bundle.network, bundle.plan.patch_size)


def _exported(folder: Path, engine: str, device: str, precision: str) -> tuple[Bundle, Engine]:
    export = read_export(folder)
    if export.format == "safetensors":
        return export.bundle, make_engine(export.bundle, engine, device, precision)
    suitable = ("openvino",) if export.format == "openvino" else ("openvino", "onnxruntime")
    if engine not in ("auto", *suitable):
        raise UserError(
            f"engine={engine}: {folder} was exported as {export.format}; expected engine={' or '.join(suitable)}, or "
            "the checkpoint itself"
        )
    name = _chosen(engine, suitable)
    source = export.model if export.format == "openvino" else export.model.read_bytes()
    return export.bundle, _of_onnx(name, source, device, "float32" if precision == "auto" else precision)


def _of_onnx(name: str, model: bytes | Path, device: str, precision: str) -> Engine:
    if name == "openvino":
        if device != "cpu":
            raise UserError(f"device={device}: OpenVINO runs on the CPU here; expected device=cpu")
        return OpenVinoEngine(model, precision)
    if precision != "float32":
        raise UserError(f"precision={precision}: ONNX Runtime computes in float32 here; expected precision=float32")
    assert isinstance(model, bytes)
    return OnnxRuntimeEngine(model, device)


#: What has to be installed for an engine, beside PyTorch, and the extra that brings it.
NEEDS: dict[str, tuple[Sequence[str], str]] = {
    "torch": ((), ""),
    "onnxruntime": (("onnx", "onnxruntime"), "onnx"),
    "openvino": (("onnx", "openvino"), "openvino"),
}
ENGINES = ("auto", "native", *NEEDS)
#: On a CPU, the faster ones first, where compiled code of our own cannot be used.
ONNX_FIRST = ("openvino", "onnxruntime", "torch")


def _chosen(engine: str, preferred: Sequence[str]) -> str:
    """The engine that the user named, if it is installed; else the first of the preferred ones that is."""
    if engine == "auto":
        return next((name for name in preferred if not _missing(name)), preferred[-1])
    missing = _missing(engine)
    if missing:
        raise UserError(f"engine={engine}: {missing[0]} is not installed; pip install 'dlunet[{NEEDS[engine][1]}]'")
    return engine


def _missing(engine: str) -> list[str]:
    return [package for package in NEEDS[engine][0] if find_spec(package) is None]


def _contiguous(tile: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tile.numpy(), np.float32)
