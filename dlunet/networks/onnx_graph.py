"""Writes a network as an ONNX graph, which ONNX Runtime and OpenVINO run.

The graph is written node by node: the networks consist of a few operations, and engines best fuse a graph of exactly
these. A light upsampling, two layers in training, is one transposed convolution here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatchmethod
from itertools import count
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from dlunet.networks.layers import LightStage, SeparableConv3d, SeparableUpsampling
from dlunet.networks.unet import UNet

#: The oldest format versions with all operations used here.
OPSET, IR_VERSION = 17, 8

INPUT, OUTPUT = "image", "logits"


def to_onnx(network: UNet, patch_size: Sequence[int]) -> onnx.ModelProto:
    """The finest logits of a network as an ONNX model.

    Args:
        network: A light or a plain U-Net.
        patch_size: (z, y, x).

    Returns:
        A model that maps ``image`` (1, in, *patch_size) to ``logits`` (1, classes, *patch_size), float32.
    """
    writer = _Writer()
    writer.emit(network, INPUT)
    writer.nodes[-1].output[0] = OUTPUT
    channels, classes = network.in_channels, network.num_classes
    graph = helper.make_graph(
        writer.nodes,
        "dlunet",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, (1, channels, *patch_size))],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, (1, classes, *patch_size))],
        writer.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


class _Writer:
    """Collects the nodes; a module's method takes the name of its input and returns that of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._numbers = count()

    @singledispatchmethod
    def emit(self, module: nn.Module, value: str) -> str:
        raise TypeError(f"no ONNX operation for {type(module).__name__}")

    @emit.register
    def _(self, network: UNet, value: str) -> str:
        skips = []
        for stage in network.encoder:
            value = self.emit(stage, value)
            skips.append(value)
        for level, skip in zip(network.decoder, reversed(skips[:-1]), strict=True):
            parts = cast(nn.ModuleDict, level)
            up, stage = self.emit(parts["up"], value), parts["stage"]
            if isinstance(stage, LightStage):
                value = self._light_stage(stage, self._separable_of_two(stage.conv1, up, skip))
            else:
                value = self.emit(stage, self._node("Concat", [up, skip], axis=1))
        return self.emit(parts["head"], value)

    @emit.register
    def _(self, stage: LightStage, value: str) -> str:
        return self._light_stage(stage, self.emit(stage.conv1, value))

    def _light_stage(self, stage: LightStage, first: str) -> str:
        """A light stage after its first convolution."""
        second = self.emit(stage.conv2, self.emit(stage.activation, self.emit(stage.norm1, first)))
        return self.emit(stage.activation, self.emit(stage.norm2, self._node("Add", [first, second])))

    def _separable_of_two(self, layers: SeparableConv3d, *values: str) -> str:
        """A separable convolution of two inputs, concatenated along the channels.

        The convolution of a concatenation is the sum of the convolutions of its parts. This avoids the largest tensor
        of the network: twice the channels at full resolution.
        """
        depthwise, pointwise = (cast(nn.Conv3d, layer) for layer in layers)
        assert depthwise.bias is not None
        channels = depthwise.out_channels // 2
        parts: list[str] = []
        for value, part in zip(values, (slice(channels), slice(channels, None)), strict=True):
            apart = [self._weight(depthwise.weight[part]), self._weight(depthwise.bias[part])]
            each = self._conv(depthwise, [value, *apart], channels)
            bias = pointwise.bias if not parts else None
            parts.append(self._conv(pointwise, [each, *self._parameters(pointwise.weight[:, part], bias)]))
        return self._node("Add", parts)

    @emit.register
    def _(self, layers: nn.Sequential, value: str) -> str:
        for layer in layers:
            value = self.emit(layer, value)
        return value

    @emit.register
    def _(self, layers: SeparableUpsampling, value: str) -> str:
        weight = layers.combined_weight()
        stride = weight.shape[2:]
        return self._node("ConvTranspose", [value, self._weight(weight)], strides=stride, kernel_shape=stride)

    @emit.register
    def _(self, layer: nn.Conv3d, value: str) -> str:
        return self._conv(layer, [value, *self._parameters(layer.weight, layer.bias)], layer.groups)

    @emit.register
    def _(self, layer: nn.ConvTranspose3d, value: str) -> str:
        return self._node(
            "ConvTranspose",
            [value, self._weight(layer.weight)],
            strides=layer.stride,
            kernel_shape=layer.kernel_size,
            group=layer.groups,
        )

    @emit.register
    def _(self, layer: nn.InstanceNorm3d, value: str) -> str:
        inputs = [value, self._weight(layer.weight), self._weight(layer.bias)]
        return self._node("InstanceNormalization", inputs, epsilon=layer.eps)

    @emit.register
    def _(self, layer: nn.LeakyReLU, value: str) -> str:
        return self._node("LeakyRelu", [value], alpha=layer.negative_slope)

    def _conv(self, layer: nn.Conv3d, inputs: Sequence[str], groups: int = 1) -> str:
        pads = [*map(int, layer.padding)] * 2
        return self._node("Conv", inputs, strides=layer.stride, kernel_shape=layer.kernel_size, pads=pads, group=groups)

    def _parameters(self, weight: Tensor, bias: Tensor | None) -> list[str]:
        return [self._weight(tensor) for tensor in (weight, bias) if tensor is not None]

    def _node(self, operation: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{operation}_{next(self._numbers)}"
        self.nodes.append(helper.make_node(operation, inputs, [output], **attributes))
        return output

    def _weight(self, tensor: Tensor) -> str:
        name = f"weight_{next(self._numbers)}"
        values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        self.weights.append(numpy_helper.from_array(values, name))
        return name
