"""The light U-Net as compiled code on a CPU, forward and backward; where it cannot run, PyTorch's layers do.

Run layer by layer, a light U-Net loads and stores every voxel many times, with little arithmetic in between. Here a
whole pass is a sequence of the operations of :mod:`dlunet.native`, each a single pass over memory. Between forward and
backward pass only the results of the separable convolutions are kept, before their normalisation; the rest is computed
again. Parameters and state dict are those of the layers.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dlunet.native import why_unavailable
from dlunet.native.program import Program
from dlunet.native.structures import TAPS_X
from dlunet.networks.layers import (
    DepthwiseConv3d,
    InstanceNorm3d,
    LightStage,
    PointwiseConv3d,
    SeparableConv3d,
    SeparableUpsampling,
)

OTHER_LAYERS = "it only runs light U-Nets with kernels of 1 or 3 and strides of 1 or 2 along x"

#: The layers of a light U-Net; a layer of another class, such as one with a parametrisation, may compute otherwise.
LAYERS = {
    *(DepthwiseConv3d, PointwiseConv3d, SeparableConv3d, InstanceNorm3d, LightStage, SeparableUpsampling),
    *(nn.ConvTranspose3d, nn.LeakyReLU, nn.ModuleList, nn.ModuleDict),
}


def compiled_forward(network: Any, x: Tensor) -> Tensor | list[Tensor] | None:
    """The logits of a light U-Net by compiled code, which :func:`why_not` must allow.

    Args:
        network: A light U-Net.
        x: Its input, (B, in_channels, z, y, x).

    Returns:
        What the network's forward pass returns, or None if PyTorch's layers have to compute it.
    """
    parameters = list(network.parameters())
    if not _can_read([x, *parameters]) or _is_observed(network):
        return None
    every_level = network.training and network.deep_supervision
    trains = torch.is_grad_enabled() and any(each.requires_grad for each in (x, *parameters))
    use = _Use(network, (len(x), *x.shape[2:]), every_level, trains)
    logits = _Compiled.apply(use, x, *parameters) if trains else use.program.forward(x)
    return list(logits) if every_level else logits[0]


def why_not(network: nn.Module) -> str | None:
    """Why compiled code cannot run a light U-Net on this machine; None if it can."""
    return (None if can_compile(network) else OTHER_LAYERS) or why_unavailable()


def can_compile(network: nn.Module) -> bool:
    """Whether compiled code supports all layers of a light U-Net."""
    layers = list(network.modules())[1:]
    return all(type(layer) in LAYERS for layer in layers) and all(
        layer.kernel_size[2] in (1, TAPS_X) and layer.stride[2] in (1, 2)
        for layer in layers
        if isinstance(layer, DepthwiseConv3d)
    )


def _can_read(tensors: list[Tensor]) -> bool:
    return not torch.is_autocast_enabled("cpu") and all(
        each.is_cpu and each.dtype == torch.float32 and each.layout == torch.strided for each in tensors
    )


def _is_observed(network: nn.Module) -> bool:
    """Whether something follows the single layers: hooks, a tracer, or a mode that counts their operations."""
    return (
        is_in_torch_dispatch_mode()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or any(
            layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
            for layer in list(network.modules())[1:]
        )
    )


#: The programs that are not in use, by network and by their other arguments.
_programs: WeakKeyDictionary[nn.Module, dict[Any, list[Program]]] = WeakKeyDictionary()
_lock = threading.Lock()


class _Use:
    """A program and its memory, from the forward pass until the backward pass is done or no longer possible."""

    def __init__(self, network: nn.Module, *key: Any) -> None:
        with _lock:
            self._unused = _programs.setdefault(network, defaultdict(list))[key]
            unused = self._unused.pop() if self._unused else None
        self.program = unused or Program(network, *key)
        self.is_over = False

    def end(self) -> None:
        """Free the program and its memory for the next use."""
        if not self.is_over:
            self.is_over = True
            self.program.release()
            self._unused.append(self.program)

    def __del__(self) -> None:
        self.end()


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, use: _Use, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *parameters)  # autograd then notices if they change before the backward pass
        ctx.use = use
        return tuple(use.program.forward(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the compiled light U-Net has no second derivatives; PyTorch's layers do, for example in float64"
            )
        if ctx.use.is_over:
            raise RuntimeError("the compiled light U-Net keeps its values for one backward pass; run the network again")
        ctx.saved_tensors  # noqa: B018  # raises if one of them was changed
        _, wants_input, *wanted = ctx.needs_input_grad
        to_input, *to_parameters = ctx.use.program.backward(gradients, wants_input)
        ctx.use.end()
        kept = (each if is_wanted else None for each, is_wanted in zip(to_parameters, wanted, strict=True))
        return None, to_input, *kept
