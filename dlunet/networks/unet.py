"""The U-Net, with light stages (DLUNet, Fig. 2) or plain ones (nnU-Net)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from dlunet.networks.compiled import LAYERS, compiled_forward, has_hooks, why_not
from dlunet.networks.layers import (
    LEAKY_SLOPE,
    InstanceNorm3d,
    LightStage,
    PointwiseConv3d,
    SeparableUpsampling,
    Size3,
    same_padding,
)

FEATURES = (32, 64, 128, 256, 320, 320)
STRIDES: tuple[Size3, ...] = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
KERNEL_SIZES: tuple[Size3, ...] = ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
DECODER_KERNEL: Size3 = (3, 3, 3)


class PlainStage(nn.Sequential):
    """nnU-Net's stage: convolution, normalisation, activation, twice."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size3, stride: Size3 = (1, 1, 1)) -> None:
        padding = same_padding(kernel_size)
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel_size, stride, padding),
            InstanceNorm3d(out_channels),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            nn.Conv3d(out_channels, out_channels, kernel_size, 1, padding),
            InstanceNorm3d(out_channels),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
        )


class PlainUpsampling(nn.ConvTranspose3d):
    """nnU-Net's transposed convolution with kernel = stride, without bias."""

    def __init__(self, in_channels: int, out_channels: int, stride: Size3) -> None:
        super().__init__(in_channels, out_channels, stride, stride, bias=False)


class UNet(nn.Module):
    """An encoder, a decoder with skips, and one class head per decoder level.

    Args:
        in_channels: Channels of the input.
        num_classes: Classes, background included.
        features: Channels of each encoder stage, finest first.
        strides: Step (z, y, x) from each encoder stage to the next: one fewer than ``features``.
        kernel_sizes: Kernel (z, y, x) of each encoder stage. Decoder stages use 3×3×3.
        deep_supervision: Whether a network in training mode returns the logits of every decoder level.

    Raises:
        ValueError: The lengths of ``features``, ``strides`` and ``kernel_sizes`` do not match, or there is one stage.
    """

    stage: type[LightStage] | type[PlainStage]
    upsampling: type[SeparableUpsampling] | type[PlainUpsampling]

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 14,
        features: Sequence[int] = FEATURES,
        strides: Sequence[Sequence[int]] = STRIDES,
        kernel_sizes: Sequence[Sequence[int]] = KERNEL_SIZES,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        if not len(features) == len(kernel_sizes) == len(strides) + 1:
            raise ValueError(
                f"{len(features)} features, {len(kernel_sizes)} kernel sizes and {len(strides)} strides: expected one "
                "kernel size per stage and one stride between consecutive stages"
            )
        if not strides:
            raise ValueError("found a U-Net of one stage; expected two or more; choose a larger patch, or finer voxels")
        self.in_channels, self.num_classes = in_channels, num_classes
        self.features = tuple(features)
        self.strides = [_size3(stride) for stride in strides]
        self.deep_supervision = deep_supervision

        self.encoder = nn.ModuleList()
        channels = [in_channels, *features]
        for (below, above), kernel, stride in zip(
            pairwise(channels), kernel_sizes, [(1, 1, 1), *self.strides], strict=True
        ):
            self.encoder.append(self.stage(below, above, _size3(kernel), stride))

        self.decoder = nn.ModuleList()
        for (fine, coarse), stride in reversed(list(zip(pairwise(features), self.strides, strict=True))):
            level = nn.ModuleDict({"up": self.upsampling(coarse, fine, stride)})
            level["stage"] = self.stage(2 * fine, fine, DECODER_KERNEL)
            if deep_supervision or len(self.decoder) == len(self.strides) - 1:
                level["head"] = PointwiseConv3d(fine, num_classes, bias=False)
            self.decoder.append(level)
        self.apply(_he_normal)

    @property
    def total_stride(self) -> Size3:
        """The factor (z, y, x) between the input and the coarsest stage: a patch must be a multiple of it."""
        z, y, x = map(math.prod, zip((1, 1, 1), *self.strides, strict=True))
        return z, y, x

    def check_size(self, patch_size: Sequence[int]) -> None:
        """Check that a patch (z, y, x) is divisible by the strides.

        Raises:
            ValueError: Its size is not a multiple of the total stride.
        """
        if any(size % step or not size for size, step in zip(patch_size, self.total_stride, strict=True)):
            raise ValueError(f"patch {tuple(patch_size)} is not a multiple of the total stride {self.total_stride}")

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment ``x`` (B, in_channels, z, y, x).

        Returns:
            In training mode with deep supervision, the logits (B, classes, …) of every decoder level, finest first;
            otherwise the finest logits, of the input's size.

        Raises:
            ValueError: The size of ``x`` is not a multiple of the network's total stride.
        """
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder features (B, C, …) of ``x`` (B, in_channels, z, y, x), finest first.

        Raises:
            ValueError: The size of ``x`` is not a multiple of the network's total stride.
        """
        self.check_size(x.shape[2:])
        if x.is_cpu:
            # On a CPU, depthwise convolutions are several times faster in the channels-last layout.
            x = x.contiguous(memory_format=torch.channels_last_3d)
        features = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        return features

    def decode(self, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The logits that :meth:`forward` returns, from the features of :meth:`encode`."""
        skips = list(features)
        del features  # features of a level are freed before the next one, unless the caller keeps them
        x = skips.pop()
        every_level = self.training and self.deep_supervision
        logits = []
        for level in self.decoder:
            parts = cast(nn.ModuleDict, level)
            x = parts["stage"](torch.cat([parts["up"](x), skips.pop()], dim=1))
            if every_level or not skips:
                logits.append(parts["head"](x))
        return logits[::-1] if every_level else logits[0]


class LightUNet(UNet):
    """The light network of DLUNet: 1,465,130 parameters with default settings.

    On a CPU it runs as compiled code where that is possible, see :mod:`dlunet.networks.compiled`.
    """

    stage = LightStage
    upsampling = SeparableUpsampling

    @property
    def why_not_compiled(self) -> str | None:
        """Why it does not run as compiled code on this machine's CPU; None if it does."""
        parts = (getattr(part, "__func__", None) for part in (self.encode, self.decode))
        is_changed = tuple(parts) != (UNet.encode, UNet.decode)
        return f"{type(self).__name__} changes what a light U-Net computes" if is_changed else why_not(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See :meth:`UNet.forward`."""
        self.check_size(x.shape[2:])
        logits = None if self.why_not_compiled else compiled_forward(self, x)
        return super().forward(x) if logits is None else logits


class PlainUNet(UNet):
    """The paper's baseline, nnU-Net's network of the same shape: 30,767,584 parameters with default settings."""

    stage = PlainStage
    upsampling = PlainUpsampling


#: The layers of a U-Net; one of another class may compute otherwise.
KNOWN_LAYERS = {*LAYERS, PlainStage, PlainUpsampling, nn.Conv3d}


def is_as_written(network: nn.Module) -> bool:
    """Whether a network computes what the U-Nets here do, so that code written for these may run it.

    A subclass may have methods or layers of its own.
    """
    if not isinstance(network, LightUNet | PlainUNet):
        return False
    methods = {name: getattr(getattr(network, name), "__func__", None) for name in ("forward", "encode", "decode")}
    return (
        methods["forward"] in (UNet.forward, LightUNet.forward)
        and (methods["encode"], methods["decode"]) == (UNet.encode, UNet.decode)
        and all(type(layer) in KNOWN_LAYERS for layer in list(network.modules())[1:])
        and not has_hooks(network)
    )


def runs_compiled(network: nn.Module) -> bool:
    """Whether a network runs as compiled code on a CPU, in float32."""
    return isinstance(network, LightUNet) and not torch.is_autocast_enabled("cpu") and not network.why_not_compiled


def _he_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _size3(values: Sequence[int]) -> Size3:
    z, y, x = values
    return int(z), int(y), int(x)
