"""Depthwise 3-D convolution on a GPU, forward and backward, as Triton kernels.

PyTorch's kernel for the weight gradient passes over input and gradient once per kernel element, and adds the sums of
its threads in the precision of the input. These pass over them once: a program walks along z through one block of the
(y, x) plane of one channel, loads the neighbours of a voxel in one plane, and uses them for all output planes that they
touch. All sums are in float32.

A candidate for :mod:`dlunet.networks.layers`, which ``training_on_gpu.py`` measures: compared with float64 in Triton's
interpreter, never yet run on a GPU. Kernel sizes are odd; inputs are in half precision or float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd

Size3 = tuple[int, int, int]

#: A program has this many voxels of a plane, walks through this many planes, and has this many warps. Chosen so that
#: registers suffice, not by time: ``layers_on_gpu.py`` measures others.
BLOCK, DEPTH, WARPS = 256, 14, 4
SIZES = ("depth", "in_z", "in_y", "in_x", "out_z", "out_y", "out_x", "channels")


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: Size3) -> Tensor:
    """Convolve each channel of ``x`` (B, C, z, y, x) with its own kernel of ``weight`` (C, 1, …), 'same' padding.

    Under autocast the result has its precision, whatever that of ``x``, so that no converted copy is needed.
    """
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return _Depthwise.apply(x, weight, bias, stride, dtype)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cuda")
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: Size3, dtype: torch.dtype) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        size = [(length - 1) // step + 1 for length, step in zip(x.shape[2:], stride, strict=True)]
        y = torch.empty((*x.shape[:2], *size), dtype=dtype, device=x.device)
        return _convolve(x, weight, bias, y, step=stride)

    @staticmethod
    @custom_bwd(device_type="cuda")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        to_x = None
        if ctx.needs_input_grad[0]:
            # A convolution with the flipped kernel; for strides above 1, of the gradient with zeros in between.
            to_x = _convolve(gradient, weight, None, torch.empty_like(x), spread=ctx.stride, flip=True)
        to_weight, to_bias = _weight_gradient(x, gradient, weight, ctx.stride)
        return to_x, to_weight, to_bias, None, None


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    step: Size3 = (1, 1, 1),
    spread: Size3 = (1, 1, 1),
    flip: bool = False,
) -> Tensor:
    """Fill ``y`` with the convolution of ``x``, spread by zeros in between, at every ``step``-th voxel."""
    block, grid = _grid(y)
    with torch.cuda.device_of(x):
        _convolve_kernel[grid](
            x, weight, weight if bias is None else bias, y, DEPTH, *x.shape[2:], *y.shape[2:], y.shape[1],
            *weight.shape[2:], *step, *spread, flip, bias is not None, block, num_warps=WARPS,
        )  # fmt: skip
    return y


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, stride: Size3) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias: each program writes its sums, which are then added in a fixed order."""
    block, grid = _grid(gradient)
    batch, channels = x.shape[:2]
    sums = torch.empty((batch, channels, grid[0] * grid[1], weight[0].numel() + 1), device=x.device)
    with torch.cuda.device_of(x):
        _weight_gradient_kernel[grid](
            x, gradient, sums, DEPTH, *x.shape[2:], *gradient.shape[2:], channels,
            *weight.shape[2:], *stride, block, num_warps=WARPS,
        )  # fmt: skip
    total = sums.sum((0, 2))
    return total[:, 1:].view_as(weight).to(weight.dtype), total[:, 0].to(weight.dtype)


def _grid(y: Tensor) -> tuple[int, tuple[int, int, int]]:
    """The voxels of a plane per program, and the programs: blocks of the plane, stretches of z, channels."""
    batch, channels, z, height, width = y.shape
    block = min(BLOCK, triton.next_power_of_2(height * width))
    return block, (triton.cdiv(height * width, block), triton.cdiv(z, DEPTH), batch * channels)


@triton.jit
def _neighbour(
    x, inside, py, px, ky: tl.constexpr, kx: tl.constexpr, in_y, in_x,
    KY: tl.constexpr, KX: tl.constexpr, UY: tl.constexpr, UX: tl.constexpr,
):  # fmt: skip
    """The values of the plane at ``x`` under kernel element (ky, kx), the kernel's centre at (py, px); 0 outside."""
    sy, sx = py + ky - KY // 2, px + kx - KX // 2
    inside = inside & (sy >= 0) & (sy < in_y * UY) & (sx >= 0) & (sx < in_x * UX)
    if UY > 1:
        inside = inside & (sy % UY == 0)
    if UX > 1:
        inside = inside & (sx % UX == 0)
    return tl.load(x + (sy // UY) * in_x + sx // UX, mask=inside, other=0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def _convolve_kernel(
    x, weight, bias, y, depth, in_z, in_y, in_x, out_z, out_y, out_x, channels,
    KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    SZ: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    UZ: tl.constexpr, UY: tl.constexpr, UX: tl.constexpr,
    FLIP: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(2).to(tl.int64)
    channel = row % channels
    x += row * in_z * in_y * in_x
    y += row * out_z * out_y * out_x + place
    inside = place < out_y * out_x
    py, px = place // out_x * SY, place % out_x * SX

    w = ()
    for tap in tl.static_range(KZ * KY * KX):
        index = KZ * KY * KX - 1 - tap if FLIP else tap
        w += (tl.load(weight + channel * (KZ * KY * KX) + index).to(tl.float32),)
    start = tl.zeros((BLOCK,), tl.float32)
    if BIAS:
        start += tl.load(bias + channel).to(tl.float32)

    first = tl.program_id(1) * depth
    last = tl.minimum(first + depth, out_z)
    if KZ == 3 and SZ == 1:
        # The sums of the output planes before and at the input plane z, which the planes up to z - 1 contributed to.
        before, here = start, start
        for z in range(first - 1, last + 1):
            after = start
            filled = inside & (z >= 0) & (z < in_z * UZ)
            if UZ > 1:
                filled = filled & (z % UZ == 0)
            for ky in tl.static_range(KY):
                for kx in tl.static_range(KX):
                    value = _neighbour(x + (z // UZ) * in_y * in_x, filled, py, px, ky, kx, in_y, in_x, KY, KX, UY, UX)
                    after += value * w[ky * KX + kx]
                    here += value * w[(KY + ky) * KX + kx]
                    before += value * w[(2 * KY + ky) * KX + kx]
            tl.store(y + (z - 1) * out_y * out_x, before, mask=inside & (z > first))
            before, here = here, after
    else:
        for z in range(first, last):
            total = start
            for kz in tl.static_range(KZ):
                plane = z * SZ + kz - KZ // 2
                filled = inside & (plane >= 0) & (plane < in_z * UZ)
                if UZ > 1:
                    filled = filled & (plane % UZ == 0)
                for ky in tl.static_range(KY):
                    for kx in tl.static_range(KX):
                        source = x + (plane // UZ) * in_y * in_x
                        value = _neighbour(source, filled, py, px, ky, kx, in_y, in_x, KY, KX, UY, UX)
                        total += value * w[(kz * KY + ky) * KX + kx]
            tl.store(y + z * out_y * out_x, total, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _weight_gradient_kernel(
    x, gradient, sums, depth, in_z, in_y, in_x, out_z, out_y, out_x, channels,
    KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    SZ: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(2).to(tl.int64)
    x += row * in_z * in_y * in_x
    gradient += row * out_z * out_y * out_x + place
    inside = place < out_y * out_x
    py, px = place // out_x * SY, place % out_x * SX

    zeros = tl.zeros((BLOCK,), tl.float32)
    to_bias = zeros
    to_w = ()
    for _ in tl.static_range(KZ * KY * KX):
        to_w += (zeros,)

    first = tl.program_id(1) * depth
    last = tl.minimum(first + depth, out_z)
    if KZ == 3 and SZ == 1:
        # The gradients at the planes z - 1 and z; those of planes of other programs count as 0.
        before, here = zeros, zeros
        for z in range(first - 1, last + 1):
            after = tl.load(gradient + (z + 1) * out_y * out_x, mask=inside & (z + 1 < last), other=0).to(tl.float32)
            filled = inside & (z >= 0) & (z < in_z)
            grown = ()
            for ky in tl.static_range(KY):
                for kx in tl.static_range(KX):
                    value = _neighbour(x + z * in_y * in_x, filled, py, px, ky, kx, in_y, in_x, KY, KX, 1, 1)
                    grown += (to_w[(ky * KX + kx) * 3] + value * after,)
                    grown += (to_w[(ky * KX + kx) * 3 + 1] + value * here,)
                    grown += (to_w[(ky * KX + kx) * 3 + 2] + value * before,)
            to_w = grown
            to_bias += after
            before, here = here, after
    else:
        for z in range(first, last):
            here = tl.load(gradient + z * out_y * out_x, mask=inside, other=0).to(tl.float32)
            grown = ()
            for ky in tl.static_range(KY):
                for kx in tl.static_range(KX):
                    for kz in tl.static_range(KZ):
                        plane = z * SZ + kz - KZ // 2
                        filled = inside & (plane >= 0) & (plane < in_z)
                        value = _neighbour(x + plane * in_y * in_x, filled, py, px, ky, kx, in_y, in_x, KY, KX, 1, 1)
                        grown += (to_w[(ky * KX + kx) * KZ + kz] + value * here,)
            to_w = grown
            to_bias += here

    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    sums += (row * tl.num_programs(0) * tl.num_programs(1) + program) * (KZ * KY * KX + 1)
    tl.store(sums, tl.sum(to_bias))
    for ky in tl.static_range(KY):
        for kx in tl.static_range(KX):
            for kz in tl.static_range(KZ):
                total = tl.sum(to_w[(ky * KX + kx) * KZ + kz])
                tl.store(sums + 1 + (kz * KY + ky) * KX + kx, total)
