"""Compiled code for losses: sums over voxels, cross entropies, and pseudo-labels.

It runs on a CPU in float32. Elsewhere, and where there is no compiler, :func:`class_sums` and :func:`cross_entropies`
return None and PyTorch computes the same.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlunet.losses.sums import ClassSums, Terms
from dlunet.native import FLAGS, load_library, why_unavailable

# The structures and enumerations of voxels.h and losses.cpp.
_LABEL_TYPES = {
    torch.bool: 0,
    torch.uint8: 0,
    torch.int8: 1,
    torch.uint16: 2,
    torch.int16: 3,
    torch.int32: 4,
    torch.int64: 5,
}
_MISSED = (None, "taylor", "taylor over classes", "cross entropy")
_NOT_IGNORED = -(2**63)
#: The exponent γ of the compiled difference.
_GAMMA = 1.5


class _Volumes(Structure):
    _fields_ = (
        ("logits", c_void_p),
        ("target", c_void_p),
        ("weight", c_void_p),
        ("batch", c_int64),
        ("classes", c_int64),
        ("voxels", c_int64),
        ("strides", c_int64 * 3),
        ("ignored", c_int64),
        ("label_type", c_int),
    )


class _Terms(Structure):
    _fields_ = (("is_difference", c_int), ("linear", c_float), ("quadratic", c_float), ("missed", c_int))


def class_sums(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore: int | None,
    terms: Terms,
    flags: tuple[str, ...] = FLAGS,
) -> ClassSums | None:
    """The sums of a loss in one pass over the logits; their gradient takes a second one.

    Args:
        logits: (B, C, …).
        target: Labels (B, …).
        weight: Voxel weights (B, …).
        ignore: A label whose voxels are ignored.
        terms: What is summed.
        flags: Compiler flags.

    Returns:
        The sums in float64; None: PyTorch must compute them.

    Raises:
        IndexError: A label is no class.
    """
    can_be = _can_be_target(target, logits) and _can_be_weight(weight, logits) and terms.gamma == _GAMMA
    if not _can_run(logits, flags) or not can_be:
        return None
    voxels = (target.contiguous(), None if weight is None else weight.float().contiguous())
    ignored = _NOT_IGNORED if ignore is None else ignore
    return ClassSums(*_ClassSums.apply(logits, *voxels, ignored, terms, flags).unbind(-1))


def cross_entropies(logits: Tensor, target: Tensor, flags: tuple[str, ...] = FLAGS) -> Tensor | None:
    """The cross entropy (B, …) of each voxel; None: PyTorch must compute it. Arguments as for :func:`class_sums`."""
    if not _can_run(logits, flags) or not _can_be_target(target, logits):
        return None
    return _CrossEntropies.apply(logits, target.contiguous(), flags)


def largest_class(logits: Tensor, flags: tuple[str, ...] = FLAGS) -> Tensor:
    """The class (B, …) of the largest of the logits (B, C, …), as ``argmax(1)``, but in uint8 if compiled code runs."""
    if not _can_run(logits, flags) or logits.shape[1] > 256:
        return logits.argmax(1)
    logits = _dense(logits.detach())
    labels = torch.empty(_voxel_shape(logits), dtype=torch.uint8)
    volumes = _volumes(logits, labels, None, _NOT_IGNORED)
    _library(flags).largest_class(byref(volumes), labels.data_ptr(), torch.get_num_threads())
    return labels


class _ClassSums(torch.autograd.Function):
    """The sums as one tensor (B, C, 4)."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int, terms: Terms, flags: tuple
    ) -> Tensor:
        logits = _dense(logits)
        ctx.save_for_backward(logits, target, weight)
        ctx.rest = ignored, terms, flags
        sums = torch.empty(*logits.shape[:2], len(ClassSums._fields), dtype=torch.float64)
        volumes, given = _volumes(logits, target, weight, ignored), _for_library(terms)
        unknown = _library(flags).class_sums(byref(volumes), byref(given), sums.data_ptr(), torch.get_num_threads())
        _check_labels(unknown, logits)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight = ctx.saved_tensors
        ignored, terms, flags = ctx.rest
        to_logits = torch.empty_like(logits)
        volumes, given = _volumes(logits, target, weight, ignored), _for_library(terms)
        of_sums = gradients[0].contiguous()
        _library(flags).class_sums_gradient(
            byref(volumes), byref(given), of_sums.data_ptr(), to_logits.data_ptr(), torch.get_num_threads()
        )
        return to_logits, None, None, None, None, None


class _CrossEntropies(torch.autograd.Function):
    """The cross entropies (B, …)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, flags: tuple) -> Tensor:
        logits = _dense(logits)
        ctx.save_for_backward(logits, target)
        ctx.flags = flags
        found = logits.new_empty(target.shape)
        volumes = _volumes(logits, target, None, _NOT_IGNORED)
        unknown = _library(flags).cross_entropies(byref(volumes), found.data_ptr(), torch.get_num_threads())
        _check_labels(unknown, logits)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, target = ctx.saved_tensors
        to_logits, of_voxels = torch.empty_like(logits), gradients[0].contiguous()
        volumes = _volumes(logits, target, None, _NOT_IGNORED)
        _library(ctx.flags).cross_entropies_gradient(
            byref(volumes), of_voxels.data_ptr(), to_logits.data_ptr(), torch.get_num_threads()
        )
        return to_logits, None, None


def _for_library(terms: Terms) -> _Terms:
    is_squared = terms.size == "squared"
    return _Terms(terms.overlap == "difference", not is_squared, is_squared, _MISSED.index(terms.missed))


def _check_labels(unknown: int, logits: Tensor) -> None:
    if unknown:
        raise IndexError(f"the target has {unknown} voxels whose label is none of the {logits.shape[1]} classes")


def _can_run(logits: Tensor, flags: tuple[str, ...]) -> bool:
    is_float32 = logits.is_cpu and logits.dtype == torch.float32
    return is_float32 and logits.ndim > 2 and logits.numel() > 0 and why_unavailable(flags) is None


def _can_be_target(target: Tensor, logits: Tensor) -> bool:
    return target.is_cpu and target.dtype in _LABEL_TYPES and target.shape == _voxel_shape(logits)


def _can_be_weight(weight: Tensor | None, logits: Tensor) -> bool:
    if weight is None:
        return True
    is_wide = weight.dtype == torch.float64  # PyTorch's loss then is, too
    return weight.is_cpu and not is_wide and not weight.requires_grad and weight.shape == _voxel_shape(logits)


@cache
def _library(flags: tuple[str, ...]) -> ctypes.CDLL:
    library = load_library(flags)
    library.class_sums.argtypes = (POINTER(_Volumes), POINTER(_Terms), c_void_p, c_int)
    library.class_sums.restype = c_int64
    library.class_sums_gradient.argtypes = (POINTER(_Volumes), POINTER(_Terms), c_void_p, c_void_p, c_int)
    library.class_sums_gradient.restype = None
    library.cross_entropies.argtypes = (POINTER(_Volumes), c_void_p, c_int)
    library.cross_entropies.restype = c_int64
    library.cross_entropies_gradient.argtypes = (POINTER(_Volumes), c_void_p, c_void_p, c_int)
    library.cross_entropies_gradient.restype = None
    library.largest_class.argtypes = (POINTER(_Volumes), c_void_p, c_int)
    library.largest_class.restype = None
    return library


def _voxel_shape(logits: Tensor) -> torch.Size:
    return logits.shape[:1] + logits.shape[2:]


def _dense(logits: Tensor) -> Tensor:
    """The logits, copied unless they are contiguous or channels-last."""
    return logits if logits.movedim(1, -1).is_contiguous() else logits.contiguous()


def _volumes(logits: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> _Volumes:
    batch, classes, voxels = *logits.shape[:2], math.prod(logits.shape[2:])
    of_class, of_voxel = (voxels, 1) if logits.is_contiguous() else (1, classes)
    return _Volumes(
        logits.data_ptr(),
        target.data_ptr(),
        None if weight is None else weight.data_ptr(),
        batch,
        classes,
        voxels,
        (c_int64 * 3)(classes * voxels, of_class, of_voxel),
        ignored,
        _LABEL_TYPES[target.dtype],
    )
