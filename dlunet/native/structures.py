"""The structures of ``structures.h`` and ``run.cpp``."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int, c_void_p

#: Channels are zero-padded to a multiple of this.
PADDING = 8

#: Size of every kernel along x; kernels of size 1 are padded with zeros.
TAPS_X = 3

_Int3 = c_int * 3


class Values(Structure):
    """A tensor of the network, before the normalisation and the activation."""


Values._fields_ = (
    ("data", c_void_p),
    ("weight", c_void_p),
    ("bias", c_void_p),
    ("weight_gradient", c_void_p),
    ("bias_gradient", c_void_p),
    ("scale", c_void_p),
    ("shift", c_void_p),
    ("mean", c_void_p),
    ("inverse", c_void_p),
    ("gradient", c_void_p),
    ("coefficients", c_void_p),
    ("sum", POINTER(Values)),
    ("shape", _Int3),
    ("channels", c_int),
    ("stored", c_int),
    ("epsilon", c_float),
)


class Upsampling(Structure):
    """Depthwise transposed convolution with kernel = stride, then pointwise convolution."""

    _fields_ = (
        ("depthwise", c_void_p),
        ("pointwise", c_void_p),
        ("depthwise_gradient", c_void_p),
        ("pointwise_gradient", c_void_p),
        ("step", _Int3),
        ("channels", c_int),
    )


class Source(Structure):
    """Input of an operation."""

    _fields_ = (
        ("values", POINTER(Values)),
        ("upsampling", POINTER(Upsampling)),
        ("gradient", c_void_p),
        ("add", c_int),
    )


class Separable(Structure):
    """Depthwise convolution with the stride, then pointwise convolution."""

    _fields_ = (
        ("sources", Source * 2),
        ("count", c_int),
        ("depthwise", c_void_p),
        ("depthwise_bias", c_void_p),
        ("pointwise", c_void_p),
        ("bias", c_void_p),
        ("depthwise_gradient", c_void_p),
        ("pointwise_gradient", c_void_p),
        ("residual", POINTER(Values)),
        ("out", POINTER(Values)),
        ("kernel", _Int3),
        ("stride", _Int3),
    )


class Head(Structure):
    """The class head."""

    _fields_ = (
        ("source", Source),
        ("weight", c_void_p),
        ("weight_gradient", c_void_p),
        ("logits", c_void_p),
        ("gradient", c_void_p),
        ("classes", c_int),
    )


class Call(Structure):
    """An operation: its function and its structure."""

    _fields_ = (("function", c_void_p), ("operation", c_void_p))


class Sequence(Structure):
    """Operations that follow each other."""

    _fields_ = (("calls", POINTER(Call)), ("count", c_int))
