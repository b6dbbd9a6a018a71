"""The native engine: the light U-Net as compiled code on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlunet.inference.engines.base import Engine, EngineUnavailable, register_engine
from dlunet.native import FLAGS, NO_COMPILER, NativeUnavailable, find_compiler
from dlunet.native.program import Program, run
from dlunet.networks import Bundle, LightUNet
from dlunet.networks.compiled import OTHER_LAYERS, can_compile
from dlunet.networks.unet import is_as_written


@register_engine("native")
class NativeEngine(Engine):
    """The light U-Net as compiled code, on a CPU, in float32.

    Its memory consists of the network's skips, one more tensor of the largest size, and the logits.

    Args:
        network: A light U-Net.
        patch_size: (z, y, x) of every tile.
        flags: Compiler flags.

    Not thread-safe: every call uses the same memory.

    Raises:
        EngineUnavailable: The library cannot be compiled here, or the network has unsupported strides or kernels.
        ValueError: The patch size is not a multiple of the network's total stride.
    """

    auto_rank = {"cpu": 1}  # noqa: RUF012

    def __init__(self, network: nn.Module, patch_size: Sequence[int], flags: tuple[str, ...] = FLAGS) -> None:
        if not can_run(network):
            raise EngineUnavailable(OTHER_LAYERS)
        assert isinstance(network, LightUNet)
        network.check_size(patch_size)
        self.name = "native on cpu, float32"
        self._flags = flags
        try:
            self._program = Program(network, patch_size, flags=flags)
        except NativeUnavailable as error:
            raise EngineUnavailable(str(error)) from None

    @classmethod
    def why_not(cls, network: nn.Module) -> str | None:
        """It runs light U-Nets and needs a compiler."""
        if not can_run(network):
            return f"{OTHER_LAYERS}, found {type(network).__name__}"
        return None if find_compiler() else NO_COMPILER

    @classmethod
    def from_bundle(cls, bundle: Bundle, device: str, precision: str) -> NativeEngine:
        """The bundle's network; the library is compiled if it is not cached."""
        assert bundle.network is not None
        return cls(bundle.network, bundle.plan.patch_size)

    def __call__(self, tiles: Tensor) -> Tensor:
        """The logits of a tile (1, in_channels, *patch_size)."""
        (shape,) = self._program.logit_shapes
        logits = tiles.new_empty(1, *shape)
        run([self._program.forward(tiles[0], [logits])], torch.get_num_threads(), self._flags)
        self._program.release()
        return logits


def can_run(network: nn.Module | None) -> bool:
    """Whether the library supports all layers of a network."""
    return isinstance(network, LightUNet) and is_as_written(network) and can_compile(network)
