"""Layers of the light network, implemented to be fast on a CPU.

Each is a drop-in replacement for the PyTorch layer it derives from: same weights, same result, same state dict.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size3 = tuple[int, int, int]

LEAKY_SLOPE = 0.01


def same_padding(kernel_size: Size3) -> Size3:
    """The padding that keeps the size at stride 1, for odd kernels."""
    if any(size % 2 == 0 for size in kernel_size):
        raise ValueError(f"kernel {tuple(kernel_size)}: expected odd sizes")
    z, y, x = kernel_size
    return z // 2, y // 2, x // 2


class DepthwiseConv3d(nn.Conv3d):
    """A convolution with one kernel per channel and 'same' padding.

    On a CPU, PyTorch's input gradient of a depthwise convolution is many times slower than the convolution itself. That
    gradient is a depthwise convolution with the flipped kernel and is computed as such; for strides above 1, zeros are
    first inserted between the voxels.
    """

    def __init__(self, channels: int, kernel_size: Size3, stride: Size3 = (1, 1, 1)) -> None:
        super().__init__(channels, channels, kernel_size, stride, same_padding(kernel_size), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (B, C, z, y, x)."""
        if x.is_cpu and x.requires_grad and not torch.is_autocast_enabled("cpu"):
            return _Depthwise.apply(x, self.weight, self.bias, self.stride, self.padding)
        return super().forward(x)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: Size3, padding: Size3) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv3d(x, weight, bias, stride, padding, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # The weight gradient takes the fast path only if both of its inputs are channels-last.
        gradient, x = (t.contiguous(memory_format=torch.channels_last_3d) for t in (gradients[0], x))
        channels, stride, padding = weight.shape[0], ctx.stride, ctx.padding
        spread = _spread(gradient, x.shape, stride)
        to_x = F.conv3d(spread, weight.flip((2, 3, 4)), padding=padding, groups=channels)
        _, to_weight, to_bias = torch.ops.aten.convolution_backward(
            gradient, x, weight, [channels], stride, padding, [1] * 3, False, [0] * 3, channels, [False, True, True]
        )
        return to_x, to_weight.contiguous(), to_bias, None, None


def _spread(gradient: Tensor, shape: torch.Size, stride: Size3) -> Tensor:
    """Place the output voxels of a strided convolution on its input grid, with zeros in between."""
    if set(stride) == {1}:
        return gradient
    spread = torch.empty(shape, dtype=gradient.dtype).to(memory_format=torch.channels_last_3d).zero_()
    spread[:, :, :: stride[0], :: stride[1], :: stride[2]] = gradient
    return spread


class InstanceNorm3d(nn.InstanceNorm3d):
    """Affine instance normalisation.

    Training computes it as group normalisation with one group per channel: the result is the same, and PyTorch's group
    normalisation is several times faster in the channels-last layout on a CPU. However, it accumulates the squares of a
    channel in float32, an error of 1e-3 for a full patch; prediction on a CPU therefore computes its own moments.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each sample of ``x`` (B, C, z, y, x) over its voxels."""
        if x.is_cpu and not torch.is_grad_enabled() and x.dtype.itemsize < torch.float32.itemsize:
            return self.forward(x.float()).to(x.dtype)  # 16 bits are too few for the squares
        if not x.is_cpu or torch.is_grad_enabled():
            return F.group_norm(x, self.num_features, self.weight, self.bias, self.eps)
        with torch.autocast("cpu", enabled=False):  # it would compute the squares in 16 bits again
            mean, variance = (moment.to(x.dtype) for moment in _moments(x))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[..., None, None, None], x, scale[..., None, None, None])


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, C) over the voxels, accumulated in float64 from per-slice means.

    The sums of squares of a slice are the diagonal of a matrix product, which needs no squared copy.
    """
    slices = x.movedim(1, -1).flatten(2, 3)  # (B, z, y · x, C)
    squares = (slices.mT @ slices).diagonal(dim1=2, dim2=3) / slices.shape[2]
    mean = slices.mean(2).double().mean(1)
    return mean, (squares.double().mean(1) - mean.square()).clamp_(min=0)


class PointwiseConv3d(nn.Conv3d):
    """A 1×1×1 convolution; on a CPU, one matrix product over the channels of each voxel.

    Its result is channels-last, even for an input with one channel, where PyTorch cannot distinguish the two layouts
    and would continue in the slow one.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, in, z, y, x) to (B, out, z, y, x)."""
        if not x.is_cpu:
            return super().forward(x)
        return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class SeparableConv3d(nn.Sequential):
    """Depthwise convolution with the stride, then pointwise convolution; both with bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size3, stride: Size3 = (1, 1, 1)) -> None:
        super().__init__(DepthwiseConv3d(in_channels, kernel_size, stride), PointwiseConv3d(in_channels, out_channels))


class SeparableUpsampling(nn.Sequential):
    """Depthwise transposed convolution with kernel = stride, then pointwise convolution; neither has a bias.

    Every voxel becomes a separate block of voxels, so that both layers are one matrix product, from the channels of a
    voxel to those of its block. On a CPU this is ten times faster than the transposed convolution alone.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size3) -> None:
        super().__init__(
            nn.ConvTranspose3d(in_channels, in_channels, stride, stride, groups=in_channels, bias=False),
            PointwiseConv3d(in_channels, out_channels, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, in, z, y, x) to (B, out, z · stride, …)."""
        if not x.is_cpu:
            return super().forward(x)
        weight = self.combined_weight().permute(2, 3, 4, 1, 0)
        blocks = F.linear(x.movedim(1, -1), weight.flatten(0, 3)).unflatten(-1, weight.shape[:4])
        # (B, z, y, x, i, j, k, out): move each block axis behind the voxel axis that it subdivides.
        blocks = blocks.permute(0, 1, 4, 2, 5, 3, 6, 7)
        return blocks.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)

    def combined_weight(self) -> Tensor:
        """The weight (in, out, *stride) of the single transposed convolution equivalent to both layers."""
        depthwise, pointwise = (layer.weight for layer in cast(Iterable[nn.Conv3d], self))
        return torch.einsum("cijk,oc->coijk", depthwise[:, 0], pointwise.flatten(1))


class LightStage(nn.Module):
    """Two separable convolutions with a residual from the first one's un-normalised output, so without projection."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size3, stride: Size3 = (1, 1, 1)) -> None:
        super().__init__()
        self.conv1 = SeparableConv3d(in_channels, out_channels, kernel_size, stride)
        self.norm1 = InstanceNorm3d(out_channels)
        self.conv2 = SeparableConv3d(out_channels, out_channels, kernel_size)
        self.norm2 = InstanceNorm3d(out_channels)
        self.activation = nn.LeakyReLU(LEAKY_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, z, y, x) to (B, out, z / stride, …)."""
        a = self.conv1(x)
        b = self.conv2(self.activation(self.norm1(a)))
        return self.activation(self.norm2(a + b))
