"""A light U-Net as a sequence of operations on planned memory, forward and backward."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from ctypes import Structure, addressof, c_void_p, cast, pointer
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from torch import Tensor

from dlunet.native.library import FLAGS, load_library
from dlunet.native.memory import BLOCKS, Lifetime, place
from dlunet.native.structures import PADDING, Call, Head, Separable, Source, Upsampling, Values
from dlunet.native.structures import Sequence as _Sequence

FLOAT = 4  # bytes


@dataclass(eq=False)
class _Node:
    """A tensor of the network: its input, the result of a separable convolution, or upsampled values.

    Attributes:
        writer: The step that writes it; -1: the network's input.
        values: What the operations know of it.
        upsampling: How it is computed from ``values``, row by row when it is read; None: it is ``values``.
        coarse: The tensor that is upsampled.
        reader: The last step that reads it.
        added: The tensor that was added to it and shares its gradient.
        parameters: The parameters of its normalisation, whose gradients come with its own.
    """

    writer: int
    values: Values
    upsampling: Upsampling | None = None
    coarse: _Node | None = None
    reader: int = -1
    added: _Node | None = None
    parameters: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Step:
    """An operation.

    Attributes:
        operation: Its structure.
        forward: The library's function; None: the operations that read the result compute it themselves.
        backward: The library's function.
        sources: What it reads.
        result: What it writes; None: logits.
        parameters: The parameters whose gradients it computes.
    """

    operation: Any
    forward: Callable[..., None] | None
    backward: Callable[..., None]
    sources: list[tuple[Source, _Node]]
    result: _Node | None
    parameters: list[int]


#: Functions of the library, each with the operation that it is called with.
Calls = list[tuple[Any, Structure]]


def run(samples: Sequence[Calls], threads: int, flags: tuple[str, ...] = FLAGS) -> None:
    """Make the calls of several samples, which must not depend on each other.

    The number of threads does not change the result.
    """
    sequences = (_Sequence * len(samples))()
    kept = []
    for sequence, calls in zip(sequences, samples, strict=True):
        array = (Call * len(calls))(*(Call(cast(function, c_void_p), addressof(given)) for function, given in calls))
        sequence.calls, sequence.count = array, len(calls)
        kept.append(array)
    load_library(flags).run(sequences, len(samples), threads)


class Program:
    """Runs a light U-Net on patches of one size, one at a time. Not thread-safe.

    Args:
        network: A light U-Net that the library supports, see :func:`dlunet.networks.compiled.can_compile`.
        patch_size: (z, y, x) of the input.
        every_level: Whether it returns the logits of every level, finest first, or the finest alone.
        trains: Whether a backward pass may follow a forward pass.
        flags: Compiler flags of the library.

    Raises:
        NativeUnavailable: The library cannot be used on this machine.
    """

    def __init__(
        self,
        network: Any,
        patch_size: Sequence[int],
        every_level: bool = False,
        trains: bool = False,
        flags: tuple[str, ...] = FLAGS,
    ) -> None:
        self._library = load_library(flags)
        self._trains = trains
        self._parameters = list(network.parameters())
        self._indices = {id(parameter): index for index, parameter in enumerate(self._parameters)}
        self._starts = _offsets([parameter.numel() for parameter in self._parameters])
        self._parameter_fields: list[tuple[Structure, str, int]] = []
        self._gradient_fields: list[tuple[Structure, str, int]] = []
        self._steps: list[_Step] = []
        self._nodes: list[_Node] = []
        self._heads: list[Head] = []
        self._input = _Node(-1, Values(shape=tuple(patch_size), channels=network.in_channels))
        self._input.values.stored = network.in_channels
        self._lay_out(network, every_level)
        self._memory_fields = self._plan_memory()
        self._size = place(list({id(lifetime): lifetime for _, _, lifetime, _ in self._memory_fields}.values()))
        self._block: Tensor | None = None
        self._base, self._addresses = 0, ()
        self._x: Tensor | None = None

    @property
    def num_parameters(self) -> int:
        """The number of values of all parameters."""
        return self._starts[-1]

    def is_for(self, network: Any) -> bool:
        """Whether the parameters of a network are still those that the program reads."""
        parameters = list(network.parameters())
        return len(parameters) == len(self._parameters) and all(map(operator.is_, parameters, self._parameters))

    @property
    def logit_shapes(self) -> list[tuple[int, ...]]:
        """The shape (classes, z, y, x) of the logits of each level, finest first."""
        return [(head.classes, *head.source.values.contents.shape) for head in self._heads[::-1]]

    def forward(self, x: Tensor, logits: Sequence[Tensor]) -> Calls:
        """What :func:`run` has to do to compute the logits of a patch.

        Until :meth:`release`, the program keeps its memory for the backward pass.

        Args:
            x: The patch (in_channels, z, y, x).
            logits: Where the logits of each level are written: contiguous tensors of the :attr:`logit_shapes`.
        """
        self._block = BLOCKS.take(self._size)
        self._x = x.movedim(0, -1).contiguous()
        self._set_addresses()
        for head, level in zip(self._heads[::-1], logits, strict=True):
            head.logits = level.data_ptr()
        return [(step.forward, step.operation) for step in self._steps if step.forward]

    def backward(
        self, to_logits: Sequence[Tensor | None], to_input: Tensor | None, to_parameters: Tensor
    ) -> tuple[Calls, set[int]]:
        """What :func:`run` has to do to compute the gradients, once after each forward pass.

        Args:
            to_logits: The gradients of the logits, as in :meth:`forward`; None: zero.
            to_input: Where the gradient of the patch is written, (z, y, x, in_channels); None: it is not needed.
            to_parameters: Where the gradients of all parameters are written, one after the other. Those of the
                convolutions' biases are 0 and not written.

        Returns:
            The calls, and the indices of the parameters that have a gradient.
        """
        for structure, name, index in self._gradient_fields:
            setattr(structure, name, to_parameters.data_ptr() + FLOAT * self._starts[index])
        self._input.values.gradient = None if to_input is None else to_input.data_ptr()
        of_heads = dict(zip(map(id, self._heads[::-1]), to_logits, strict=True))
        calls: Calls = []
        have_gradient: set[_Node] = set()
        found: set[int] = set()
        for step in reversed(self._steps):
            if step.result is None:
                gradient = of_heads[id(step.operation)]
                if gradient is None:
                    continue
                step.operation.gradient = gradient.data_ptr()
            elif step.result not in have_gradient:
                continue
            for source, node in step.sources:
                source.add = node in have_gradient
                have_gradient.add(node)
                found.update(node.parameters)
            found.update(step.parameters)
            calls.append((step.backward, step.operation))
        return calls, found

    def release(self) -> None:
        """Free the memory; a backward pass is no longer possible."""
        if self._block is not None:
            BLOCKS.give_back(self._block)
        self._block = self._x = None

    def _lay_out(self, network: Any, every_level: bool) -> None:
        node, encoded = self._input, []
        for stage, stride in zip(network.encoder, [(1, 1, 1), *network.strides], strict=True):
            node = self._add_stage(stage, [node], stride)
            encoded.append(node)
        encoded.pop()
        for number, parts in enumerate(network.decoder):
            up = self._add_upsampling(parts["up"], node)
            node = self._add_stage(parts["stage"], [up, encoded.pop()], (1, 1, 1))
            if every_level or number == len(network.decoder) - 1:
                self._add_head(parts["head"], node)

    def _add_stage(self, stage: Any, sources: list[_Node], stride: Sequence[int]) -> _Node:
        first = self._add_separable(stage.conv1, stage.norm1, sources, stride)
        second = self._add_separable(stage.conv2, stage.norm2, [first], (1, 1, 1), first)
        second.added = first
        return second

    def _add_separable(
        self, layers: Any, norm: Any, nodes: list[_Node], stride: Sequence[int], residual: _Node | None = None
    ) -> _Node:
        """A separable convolution of one tensor, or of two concatenated ones."""
        depthwise, pointwise = layers
        shape = [size // step for size, step in zip(nodes[-1].values.shape, stride, strict=True)]
        out = self._add_values(shape, pointwise.out_channels, norm)
        operation = Separable(
            count=len(nodes), out=pointer(out.values), kernel=depthwise.kernel_size, stride=tuple(stride)
        )
        for number, node in enumerate(nodes):
            operation.sources[number] = self._source(node)
        if residual is not None:
            operation.residual = pointer(residual.values)
        parameters = [
            self._set(operation, "depthwise", depthwise.weight, "depthwise_gradient"),
            self._set(operation, "depthwise_bias", depthwise.bias),
            self._set(operation, "pointwise", pointwise.weight, "pointwise_gradient"),
            self._set(operation, "bias", pointwise.bias),
        ]
        sources = [(operation.sources[number], node) for number, node in enumerate(nodes)]
        functions = self._library.separable, self._library.separable_backward
        self._steps.append(_Step(operation, *functions, sources, out, parameters))
        return out

    def _add_values(self, shape: Sequence[int], channels: int, norm: Any) -> _Node:
        """The result of the next step, with its normalisation."""
        stored = math.ceil(channels / PADDING) * PADDING
        values = Values(shape=tuple(shape), channels=channels, stored=stored, epsilon=norm.eps)
        node = _Node(len(self._steps), values)
        node.parameters = [
            self._set(values, "weight", norm.weight, "weight_gradient"),
            self._set(values, "bias", norm.bias, "bias_gradient"),
        ]
        self._nodes.append(node)
        return node

    def _add_upsampling(self, layers: Any, coarse: _Node) -> _Node:
        depthwise, pointwise = layers
        up = Upsampling(step=depthwise.stride, channels=pointwise.out_channels)
        parameters = [
            self._set(up, "depthwise", depthwise.weight, "depthwise_gradient"),
            self._set(up, "pointwise", pointwise.weight, "pointwise_gradient"),
        ]
        node = _Node(len(self._steps), coarse.values, up, coarse)
        operation = self._source(node)
        self._steps.append(
            _Step(operation, None, self._library.upsampling_backward, [(operation, coarse)], node, parameters)
        )
        self._nodes.append(node)
        return node

    def _add_head(self, layer: Any, node: _Node) -> None:
        head = Head(source=self._source(node), classes=layer.out_channels)
        parameters = [self._set(head, "weight", layer.weight, "weight_gradient")]
        functions = self._library.classify, self._library.classify_backward
        self._steps.append(_Step(head, *functions, [(head.source, node)], None, parameters))
        self._heads.append(head)

    def _source(self, node: _Node) -> Source:
        """What the next step reads."""
        for read in (node, node.coarse):
            if read is not None:
                read.reader = len(self._steps)
        return Source(pointer(node.values), pointer(node.upsampling) if node.upsampling else None)

    def _set(self, structure: Structure, name: str, parameter: Tensor, gradient: str | None = None) -> int:
        """Let a field point to a parameter, and another one to its gradient; returns the parameter's index."""
        index = self._indices[id(parameter)]
        self._parameter_fields.append((structure, name, index))
        if gradient is not None:
            self._gradient_fields.append((structure, gradient, index))
        return index

    def _plan_memory(self) -> list[tuple[Structure, str, Lifetime, int]]:
        """The fields that point into the block: the lifetime of the tensor, and the part of it, in floats."""
        last = 2 * len(self._steps) - 1  # the backward pass of step k is step ``last - k``
        fields: list[tuple[Structure, str, Lifetime, int]] = []
        for node in self._nodes:
            values, writer = node.values, node.writer
            if node.upsampling is not None:
                if self._trains:
                    up = node.upsampling
                    fine = [size * step for size, step in zip(values.shape, up.step, strict=True)]
                    stored = math.ceil(up.channels / PADDING) * PADDING
                    gradient = Lifetime(math.prod(fine) * stored, last - node.reader, last - writer)
                    readers = (self._steps[writer], self._steps[node.reader])
                    fields += [(source, "gradient", gradient, 0) for step in readers for source, _ in step.sources[:1]]
                continue
            # The tensor that was added to this one needs its gradient, and therefore its values, even later.
            end = last - (node.added.writer if node.added else writer) if self._trains else node.reader
            size, channels = math.prod(values.shape) * values.stored, values.stored
            data, statistics = Lifetime(size, writer, end), Lifetime(4 * channels, writer, end)
            fields.append((values, "data", data, 0))
            names = ("scale", "shift", "mean", "inverse")
            fields += [(values, name, statistics, number * channels) for number, name in enumerate(names)]
            if self._trains:
                fields.append((values, "gradient", Lifetime(size, last - node.reader, end), 0))
                fields.append((values, "coefficients", Lifetime(3 * channels, last - node.reader, end), 0))
                if node.added:
                    node.added.values.sum = pointer(values)
        return fields

    def _set_addresses(self) -> None:
        """Let the structures point to the parameters, the block of memory and the input, which may have moved."""
        assert self._block is not None and self._x is not None
        addresses = tuple(parameter.data_ptr() for parameter in self._parameters)
        if addresses != self._addresses:
            self._addresses = addresses
            for structure, name, index in self._parameter_fields:
                setattr(structure, name, addresses[index])
        base = self._block.data_ptr()
        if base != self._base:
            self._base = base
            for structure, name, lifetime, part in self._memory_fields:
                setattr(structure, name, base + FLOAT * (lifetime.offset + part))
        self._input.values.data = self._x.data_ptr()


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Where each of several consecutive parts begins, and where the last one ends."""
    return [0, *accumulate(sizes)]
