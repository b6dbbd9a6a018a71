"""The PyTorch engine: it runs every network, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from dlunet.inference.engines.base import Engine, EngineUnavailable, register_engine
from dlunet.networks import Bundle

PAPERS_PATCH = (56, 160, 160)


@register_engine("torch")
class TorchEngine(Engine):
    """PyTorch, with autocast below float32."""

    devices = ("cpu", "cuda")
    precisions = ("float32", "bfloat16", "float16")
    auto_rank = {"cpu": 4, "cuda": 1}  # noqa: RUF012

    def __init__(
        self, network: nn.Module, device: str = "cpu", precision: str = "float32", tiles_at_once: int = 1
    ) -> None:
        self.network = network.to(device).eval()
        self.device, self.tiles_at_once = device, tiles_at_once
        self.dtype: torch.dtype = getattr(torch, precision)
        self.name = f"torch on {device}, {precision}"

    @classmethod
    def default_precision(cls, device: str) -> str:
        """float16 on a GPU, where it is twice as fast; else float32."""
        return "float16" if device == "cuda" else "float32"

    @classmethod
    def from_bundle(cls, bundle: Bundle, device: str, precision: str) -> TorchEngine:
        """The bundle's network.

        Raises:
            EngineUnavailable: There is no GPU.
        """
        assert bundle.network is not None
        if device == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailable("PyTorch finds no GPU; choose device=cpu, or install a PyTorch for GPUs")
        return cls(bundle.network, device, precision, tiles_at_once(bundle.plan.patch_size, device))

    def __call__(self, tiles: Tensor) -> Tensor:
        """The logits of tiles."""
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(tiles)


def tiles_at_once(patch_size: Sequence[int], device: str) -> int:
    """As many tiles as the paper's patch has room for, which fits a 2 GB GPU; 1 on a CPU, where more are no faster."""
    return max(1, prod(PAPERS_PATCH) // prod(patch_size)) if device == "cuda" else 1
