"""The light U-Net as compiled code on a CPU, forward and backward; where it cannot run, PyTorch's layers do.

Run layer by layer, a light U-Net loads and stores every voxel many times, with little arithmetic in between. Here a
whole pass is a sequence of the operations of :mod:`dlunet.native`, each a single pass over memory. Between forward and
backward pass only the results of the separable convolutions are kept, before their normalisation; the rest is computed
again. Parameters and state dict are those of the layers.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from dlunet.native import FLAGS, why_unavailable
from dlunet.native.program import Program, run
from dlunet.native.structures import TAPS_X
from dlunet.networks.layers import (
    LEAKY_SLOPE,
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
    if not _can_read(x, parameters) or _is_observed(network) or x.shape[1] != network.in_channels or not len(x):
        return None
    every_level = network.training and network.deep_supervision
    trains = torch.is_grad_enabled() and any(each.requires_grad for each in (x, *parameters))
    run = _Run(network, x, every_level, trains)
    logits = _Compiled.apply(run, x, *parameters) if trains else run.forward(x)
    return list(logits) if every_level else logits[0]


def why_not(network: nn.Module) -> str | None:
    """Why compiled code cannot run a light U-Net on this machine; None if it can."""
    return (None if can_compile(network) else OTHER_LAYERS) or why_unavailable(FLAGS)


def can_compile(network: nn.Module) -> bool:
    """Whether compiled code supports all layers of a light U-Net."""
    layers = list(network.modules())[1:]
    uses = list(network.named_parameters(remove_duplicate=False))
    is_shared = len(uses) != len(list(network.parameters()))
    return not is_shared and all(type(layer) in LAYERS and _can_compile_layer(layer) for layer in layers)


def _can_compile_layer(layer: nn.Module) -> bool:
    match layer:
        case DepthwiseConv3d():
            return layer.kernel_size[2] in (1, TAPS_X) and layer.stride[2] in (1, 2) and layer.bias is not None
        case SeparableConv3d():
            return layer[1].bias is not None
        case nn.LeakyReLU():
            return layer.negative_slope == LEAKY_SLOPE
    return True


def _can_read(x: Tensor, parameters: list[Tensor]) -> bool:
    is_float32 = not torch.is_autocast_enabled("cpu") and x.is_cpu and x.dtype == torch.float32
    return (
        is_float32
        and x.layout == torch.strided
        and all(each.is_cpu and each.dtype == torch.float32 and each.is_contiguous() for each in parameters)
    )


def _is_observed(network: nn.Module) -> bool:
    """Whether something follows the single layers: hooks, a tracer, or a mode that counts their operations."""
    return (
        _get_current_dispatch_mode() is not None
        or nn.modules.module._has_any_global_hook()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or has_hooks(network)
    )


def has_hooks(network: nn.Module) -> bool:
    """Whether there are hooks on layers of a network."""
    return any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in list(network.modules())[1:]
    )


#: The programs that are not in use, by network and by their other arguments.
_programs: WeakKeyDictionary[nn.Module, dict[Any, list[Program]]] = WeakKeyDictionary()
_lock = threading.Lock()


class _Run:
    """Programs and their memory, one for each sample, from the forward pass until no backward pass can follow."""

    def __init__(self, network: nn.Module, x: Tensor, *settings: Any) -> None:
        self.programs: list[Program] = []
        key = (*x.shape[2:], *settings)
        with _lock:
            self._unused = _programs.setdefault(network, defaultdict(list))[key]
            if self._unused and not self._unused[-1].is_for(network):
                self._unused.clear()  # parameters were replaced
            self.programs = [self._unused.pop() for _ in range(min(len(x), len(self._unused)))]
        self.programs += [Program(network, x.shape[2:], *settings) for _ in range(len(x) - len(self.programs))]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The logits (B, classes, …) of each level, finest first."""
        logits = tuple(x.new_empty(len(x), *shape) for shape in self.programs[0].logit_shapes)
        samples = zip(self.programs, x, zip(*logits, strict=True), strict=True)
        run([program.forward(patch, levels) for program, patch, levels in samples], torch.get_num_threads())
        return logits

    def backward(
        self, to_logits: Sequence[Tensor | None], x: Tensor, wants_input: bool
    ) -> tuple[Tensor | None, Tensor, set[int]]:
        """The gradient of the input, those of all parameters one after the other, and which parameters have one."""
        none = [None] * len(x)
        to_input = torch.empty_like(x.movedim(1, -1), memory_format=torch.contiguous_format) if wants_input else None
        levels = [none if level is None else level.contiguous() for level in to_logits]
        to_parameters = torch.zeros(len(x), self.programs[0].num_parameters)
        samples = zip(
            self.programs, zip(*levels, strict=True), none if to_input is None else to_input, to_parameters, strict=True
        )
        calls, found = zip(*(program.backward(*given) for program, *given in samples), strict=True)
        run(calls, torch.get_num_threads())
        return None if to_input is None else to_input.movedim(-1, 1), to_parameters.sum(0), found[0]

    @property
    def is_over(self) -> bool:
        """Whether a backward pass is no longer possible."""
        return not self.programs

    def end(self) -> None:
        """Free the programs and their memory for the next run."""
        for program in self.programs:
            program.release()
        self._unused += self.programs
        self.programs = []

    def __del__(self) -> None:
        self.end()


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *parameters)  # autograd then notices if they change before the backward pass
        ctx.run = run
        return run.forward(x)

    @staticmethod
    def backward(ctx: Any, *to_logits: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the compiled light U-Net has no second derivatives; PyTorch's layers do, for example in float64"
            )
        if ctx.run.is_over:
            raise RuntimeError("the compiled light U-Net keeps its values for one backward pass; run the network again")
        x, *parameters = ctx.saved_tensors
        _, wants_input, *wanted = ctx.needs_input_grad
        to_input, flat, found = ctx.run.backward(to_logits, x, wants_input)
        ctx.run.end()
        parts = flat.split([parameter.numel() for parameter in parameters])
        gradients = (
            part.view_as(parameter) if is_wanted and index in found else None
            for index, (part, parameter, is_wanted) in enumerate(zip(parts, parameters, wanted, strict=True))
        )
        return None, to_input, *gradients
