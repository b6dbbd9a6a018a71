"""Instance normalisation with leaky ReLU on a GPU, forward and backward, as Triton kernels.

PyTorch's mixed precision normalises in float32: it converts the volume, normalises it, rectifies it and converts it
back. These kernels read and write half precision and sum in float32: the moments of each stretch of a channel about its
own mean, then combined.

A candidate for :mod:`dlunet.networks.layers`, which ``training_on_gpu.py`` measures: compared with float64 in Triton's
interpreter, never yet run on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd

#: Voxels per program.
STRETCH = 4096


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
    """Normalise each channel of each sample of ``x`` (B, C, …), scale, shift, and multiply negatives by ``slope``."""
    return _Normalise.apply(x, weight, bias, eps, slope)


class _Normalise(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cuda")
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        x = x.contiguous()
        rows, voxels = x.shape[0] * x.shape[1], x[0, 0].numel()
        stretches = triton.cdiv(voxels, STRETCH)
        moments = torch.empty((2, rows, stretches), device=x.device)
        y = torch.empty_like(x)
        ctx.shape = (voxels, x.shape[1], eps, slope, STRETCH, triton.next_power_of_2(stretches))
        with torch.cuda.device_of(x):
            _moments_kernel[(stretches, rows)](x, moments[0], moments[1], voxels, STRETCH, num_warps=8)
            _normalise_kernel[(stretches, rows)](x, weight, bias, moments[0], moments[1], y, *ctx.shape, num_warps=8)
        ctx.save_for_backward(x, weight, bias, moments)
        return y

    @staticmethod
    @custom_bwd(device_type="cuda")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, moments = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        to_x, sums = torch.empty_like(x), torch.empty_like(moments)
        grid = moments.shape[:0:-1]
        with torch.cuda.device_of(x):
            arguments = (x, weight, bias, moments[0], moments[1], gradient, sums[0], sums[1])
            _sums_kernel[grid](*arguments, *ctx.shape, num_warps=8)
            _gradient_kernel[grid](*arguments, to_x, *ctx.shape, num_warps=8)
        to_weight, to_bias = sums.sum(2).view(2, *x.shape[:2]).sum(1)[[1, 0]]
        return to_x, to_weight, to_bias, None, None


@triton.jit
def _moments_kernel(x, means, squares, voxels, STRETCH: tl.constexpr):
    """The mean of each stretch, and its sum of squared differences from that mean."""
    row, stretch = tl.program_id(1), tl.program_id(0)
    place = stretch * STRETCH + tl.arange(0, STRETCH)
    inside = place < voxels
    value = tl.load(x + row.to(tl.int64) * voxels + place, mask=inside, other=0).to(tl.float32)
    mean = tl.sum(value) / tl.minimum(STRETCH, voxels - stretch * STRETCH)
    difference = tl.where(inside, value - mean, 0)
    index = row * tl.num_programs(0) + stretch
    tl.store(means + index, mean)
    tl.store(squares + index, tl.sum(difference * difference))


@triton.jit
def _combined(means, squares, row, voxels, eps, STRETCH: tl.constexpr, STRETCHES: tl.constexpr):
    """Mean and reciprocal standard deviation of a channel from the moments of its stretches."""
    stretch = tl.arange(0, STRETCHES)
    known = stretch < tl.num_programs(0)
    index = row * tl.num_programs(0) + stretch
    size = tl.where(known, tl.minimum(STRETCH, voxels - stretch * STRETCH), 0)
    means_here = tl.load(means + index, mask=known, other=0)
    mean = tl.sum(means_here * size) / voxels
    square = tl.sum(tl.load(squares + index, mask=known, other=0))
    square += tl.sum((means_here - mean) * (means_here - mean) * size)
    return mean, tl.rsqrt(square / voxels + eps)


@triton.jit
def _normalise_kernel(
    x, weight, bias, means, squares, y, voxels, channels, eps, slope, STRETCH: tl.constexpr, STRETCHES: tl.constexpr
):  # fmt: skip
    row = tl.program_id(1)
    mean, scale = _combined(means, squares, row, voxels, eps, STRETCH, STRETCHES)
    place = tl.program_id(0) * STRETCH + tl.arange(0, STRETCH)
    offset = row.to(tl.int64) * voxels + place
    inside = place < voxels
    value = (tl.load(x + offset, mask=inside, other=0).to(tl.float32) - mean) * scale
    value = value * tl.load(weight + row % channels) + tl.load(bias + row % channels)
    tl.store(y + offset, tl.where(value > 0, value, value * slope), mask=inside)


@triton.jit
def _normalised(
    x, weight, bias, means, squares, gradient, row, voxels, channels, eps, slope,
    STRETCH: tl.constexpr, STRETCHES: tl.constexpr,
):  # fmt: skip
    """Normalised voxels, the gradient with respect to them before scale and shift, and weight over deviation."""
    mean, scale = _combined(means, squares, row, voxels, eps, STRETCH, STRETCHES)
    place = tl.program_id(0) * STRETCH + tl.arange(0, STRETCH)
    offset = row.to(tl.int64) * voxels + place
    inside = place < voxels
    value = (tl.load(x + offset, mask=inside, other=0).to(tl.float32) - mean) * scale
    w = tl.load(weight + row % channels)
    incoming = tl.load(gradient + offset, mask=inside, other=0).to(tl.float32)
    incoming = tl.where(value * w + tl.load(bias + row % channels) > 0, incoming, incoming * slope)
    return value, incoming, w * scale, offset, inside


@triton.jit
def _sums_kernel(
    x, weight, bias, means, squares, gradient, sums, products, voxels, channels, eps, slope,
    STRETCH: tl.constexpr, STRETCHES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    value, incoming, _, _, _ = _normalised(
        x, weight, bias, means, squares, gradient, row, voxels, channels, eps, slope, STRETCH, STRETCHES
    )
    index = row * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + index, tl.sum(incoming))
    tl.store(products + index, tl.sum(incoming * value))


@triton.jit
def _gradient_kernel(
    x, weight, bias, means, squares, gradient, sums, products, to_x, voxels, channels, eps, slope,
    STRETCH: tl.constexpr, STRETCHES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    value, incoming, factor, offset, inside = _normalised(
        x, weight, bias, means, squares, gradient, row, voxels, channels, eps, slope, STRETCH, STRETCHES
    )
    stretch = tl.arange(0, STRETCHES)
    index, known = row * tl.num_programs(0) + stretch, stretch < tl.num_programs(0)
    total = tl.sum(tl.load(sums + index, mask=known, other=0)) / voxels
    product = tl.sum(tl.load(products + index, mask=known, other=0)) / voxels
    tl.store(to_x + offset, factor * (incoming - total - value * product), mask=inside)
