"""Runs a light U-Net with the operations of ``light_unet.cpp``: packs its weights and plans shared buffers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_void_p
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlunet.inference.engines.base import Engine, EngineUnavailable, register_engine
from dlunet.native import FLAGS, NO_COMPILER, NativeUnavailable, find_compiler, load_library
from dlunet.networks import Bundle, LightUNet
from dlunet.networks.layers import DepthwiseConv3d, InstanceNorm3d, SeparableConv3d, SeparableUpsampling
from dlunet.networks.unet import LightStage

#: Size of every kernel along x in the library; smaller kernels are padded with zeros.
TAPS_X = 3

OTHER_NETWORK = "it only runs light U-Nets with kernels of 1 or 3 and strides of 1 or 2 along x"

Int3 = c_int * 3


class _Source(Structure):
    _fields_ = (
        ("values", c_void_p),
        ("scale", c_void_p),
        ("shift", c_void_p),
        ("upsampling", c_void_p),
        ("shape", Int3),
        ("step", Int3),
        ("stored", c_int),
        ("channels", c_int),
    )


class _Normalisation(Structure):
    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("scale", c_void_p),
        ("shift", c_void_p),
        ("epsilon", c_float),
    )


class _Separable(Structure):
    _fields_ = (
        ("sources", _Source * 2),
        ("count", c_int),
        ("depthwise", c_void_p),
        ("depthwise_bias", c_void_p),
        ("pointwise", c_void_p),
        ("bias", c_void_p),
        ("residual", c_void_p),
        ("out", c_void_p),
        ("norm", _Normalisation),
        ("depth", c_int),
        ("kernel", c_int * 2),
        ("stride", Int3),
        ("shape", Int3),
        ("channels", c_int),
    )


class _Head(Structure):
    _fields_ = (("source", _Source), ("weight", c_void_p), ("out", c_void_p), ("depth", c_int), ("classes", c_int))


@dataclass(frozen=True)
class _Values:
    """A tensor of the network, before the normalisation and activation, which its readers apply.

    Attributes:
        data: (z, y, x, channels), channels padded.
        real: Number of channels without padding.
        norm: Scale and shift of the normalisation; None: the values are used unchanged.
        upsampling: The layer that upsamples it to a finer grid, or None.
    """

    data: Tensor
    real: int
    norm: tuple[Tensor, Tensor] | None = None
    upsampling: SeparableUpsampling | None = None


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
            raise EngineUnavailable(OTHER_NETWORK)
        assert isinstance(network, LightUNet)
        network.check_size(patch_size)
        self.name = "native on cpu, float32"
        try:
            self._library = load_library(flags)
        except NativeUnavailable as error:
            raise EngineUnavailable(str(error)) from None
        self._library.separable.argtypes = (POINTER(_Separable), c_int)
        self._library.classify.argtypes = (POINTER(_Head), c_int)
        self._width = self._library.width()
        self._kept: list[Tensor] = []  # tensors that the operations point to
        self._operations: list[_Separable] = []
        self._lay_out(network, tuple(patch_size))

    @classmethod
    def why_not(cls, network: nn.Module) -> str | None:
        """It runs light U-Nets and needs a compiler."""
        if not can_run(network):
            return f"{OTHER_NETWORK}, found {type(network).__name__}"
        return None if find_compiler() else NO_COMPILER

    @classmethod
    def from_bundle(cls, bundle: Bundle, device: str, precision: str) -> NativeEngine:
        """The bundle's network; the library is compiled if it is not cached."""
        assert bundle.network is not None
        return cls(bundle.network, bundle.plan.patch_size)

    def __call__(self, tiles: Tensor) -> Tensor:
        """The logits of a tile (1, in_channels, *patch_size)."""
        assert tiles.movedim(1, -1).shape[1:] == self._input.shape and len(tiles) == 1, tiles.shape
        self._input.copy_(tiles[0].movedim(0, -1))
        threads = torch.get_num_threads()
        for operation in self._operations:
            self._library.separable(byref(operation), threads)
        self._library.classify(byref(self._head), threads)
        return self._logits

    def _lay_out(self, network: LightUNet, patch_size: tuple[int, ...]) -> None:
        shapes = [patch_size]
        for stride in network.strides:
            shapes.append(tuple(size // step for size, step in zip(shapes[-1], stride, strict=True)))
        skips = [
            torch.empty(*shape, self._padded(channels))
            for shape, channels in zip(shapes, network.features, strict=True)
        ]
        # Only the second convolution of a stage reads the first one's output: all stages share one buffer.
        between = torch.empty(max(skip.numel() for skip in skips))
        self._input = torch.empty(*patch_size, network.in_channels)

        values, encoded = _Values(self._input, network.in_channels), []
        for stage, skip, stride in zip(network.encoder, skips, [(1, 1, 1), *network.strides], strict=True):
            values = self._add_stage(cast(LightStage, stage), [values], stride, between, skip)
            encoded.append(values)
        for level, fine in zip(network.decoder, reversed(encoded[:-1]), strict=True):
            parts = cast(nn.ModuleDict, level)
            up = _Values(values.data, values.real, values.norm, cast(SeparableUpsampling, parts["up"]))
            # The stage's first convolution is the last reader of the skip, so the second overwrites it.
            values = self._add_stage(cast(LightStage, parts["stage"]), [up, fine], (1, 1, 1), between, fine.data)

        self._logits = torch.empty(1, network.num_classes, *patch_size)
        weight = cast(nn.Conv3d, parts["head"]).weight.detach().flatten(1)
        self._head = _Head(
            source=self._source(values),
            weight=self._keep(self._packed(weight, values)),
            out=self._logits.data_ptr(),
            depth=values.real,
            classes=network.num_classes,
        )

    def _add_stage(
        self, stage: LightStage, sources: list[_Values], stride: Sequence[int], between: Tensor, out: Tensor
    ) -> _Values:
        first = self._add(stage.conv1, stage.norm1, sources, stride, between[: out.numel()].view_as(out))
        return self._add(stage.conv2, stage.norm2, [first], (1, 1, 1), out, residual=first.data)

    def _add(
        self,
        layers: SeparableConv3d,
        norm: InstanceNorm3d,
        sources: list[_Values],
        stride: Sequence[int],
        out: Tensor,
        residual: Tensor | None = None,
    ) -> _Values:
        """Add a separable convolution of one source, or of two sources concatenated along the channels."""
        depthwise, pointwise = (cast(nn.Conv3d, layer) for layer in layers)
        assert depthwise.bias is not None and pointwise.bias is not None
        count, channels = len(sources), out.shape[-1]
        kernels = torch.cat([self._pad(part) for part in depthwise.weight.detach()[:, 0].chunk(count)])
        kernels = F.pad(kernels, [(TAPS_X - kernels.shape[3]) // 2] * 2)  # (channels, z, y, TAPS_X)
        biases = torch.cat([self._pad(part) for part in depthwise.bias.detach().chunk(count)])
        matrix = pointwise.weight.detach().flatten(1)
        scale, shift = torch.empty(channels), torch.empty(channels)
        operation = _Separable(
            count=count,
            depthwise=self._keep(kernels.unflatten(0, (-1, self._width)).permute(0, 2, 3, 4, 1)),
            depthwise_bias=self._keep(biases),
            pointwise=self._keep(self._packed(matrix, *sources)),
            bias=self._keep(self._pad(pointwise.bias.detach())),
            residual=None if residual is None else residual.data_ptr(),
            out=self._keep(out),
            norm=_Normalisation(
                weight=self._keep(self._pad(norm.weight.detach())),
                bias=self._keep(self._pad(norm.bias.detach())),
                scale=self._keep(scale),
                shift=self._keep(shift),
                epsilon=norm.eps,
            ),
            depth=self._depth(sources),
            kernel=tuple(depthwise.kernel_size[:2]),
            stride=tuple(stride),
            shape=tuple(out.shape[:3]),
            channels=channels,
        )
        for place, source in enumerate(sources):
            operation.sources[place] = self._source(source)
        self._operations.append(operation)
        return _Values(out, pointwise.out_channels, (scale, shift))

    def _source(self, values: _Values) -> _Source:
        scale, shift = values.norm or (None, None)
        stored = values.data.shape[3]
        source = _Source(
            values=self._keep(values.data),
            scale=None if scale is None else scale.data_ptr(),
            shift=None if shift is None else shift.data_ptr(),
            shape=tuple(values.data.shape[:3]),
            step=(1, 1, 1),
            stored=stored,
            channels=self._source_channels(values),
        )
        if values.upsampling:
            weight = self._pad(self._pad(values.upsampling.combined_weight().detach()).transpose(0, 1))
            weight = weight.unflatten(0, (-1, self._width))  # (out / WIDTH, WIDTH, in, step z, step y, step x)
            source.upsampling = self._keep(weight.permute(3, 4, 5, 0, 2, 1))
            source.step = tuple(weight.shape[3:])
        return source

    def _packed(self, matrix: Tensor, *sources: _Values) -> Tensor:
        """A matrix (out, in of all sources) as (out / WIDTH, depth, WIDTH)."""
        columns = [self._pad(part.T) for part in matrix.chunk(len(sources), dim=1)]
        rows = self._pad(torch.cat(columns)[: self._depth(sources)].T)
        return rows.unflatten(0, (-1, self._width)).transpose(1, 2)

    def _depth(self, sources: Sequence[_Values]) -> int:
        """The number of input channels of a pointwise layer; trailing padding is excluded."""
        return sources[0].real if len(sources) == 1 else sum(self._source_channels(source) for source in sources)

    def _source_channels(self, values: _Values) -> int:
        up = values.upsampling
        return self._padded(values.data.shape[3] if up is None else cast(nn.Conv3d, up[1]).out_channels)

    def _padded(self, channels: int) -> int:
        return math.ceil(channels / self._width) * self._width

    def _pad(self, tensor: Tensor) -> Tensor:
        """Pad the first axis with zeros."""
        return F.pad(tensor, [0, 0] * (tensor.dim() - 1) + [0, self._padded(len(tensor)) - len(tensor)])

    def _keep(self, tensor: Tensor) -> int:
        """The address of a tensor's values, which are kept for the lifetime of the engine."""
        self._kept.append(tensor.float().contiguous())
        return self._kept[-1].data_ptr()


def can_run(network: nn.Module | None) -> bool:
    """Whether the library supports all layers of a network."""
    if not isinstance(network, LightUNet):
        return False
    depthwise = (module for module in network.modules() if isinstance(module, DepthwiseConv3d))
    return all(layer.kernel_size[2] in (1, TAPS_X) and layer.stride[2] in (1, 2) for layer in depthwise)
