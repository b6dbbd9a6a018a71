"""Times the light network's depthwise convolutions and norms one by one on a GPU: PyTorch's kernels and Triton's.

    python benchmarks/layers_on_gpu.py

The sizes are those of a patch of 56×160×160 in float16. Triton's results are first compared with float64. A copy of
the layer's input is timed as well: no kernel that reads one such volume and writes another can be faster. Triton's
depthwise convolution is timed with several divisions of the work.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import depthwise_triton
import torch
import torch.nn.functional as F
from norm_triton import normalise
from torch import Tensor, nn
from training_on_gpu import TABLE_2, attempt

from dlunet.networks import LightUNet
from dlunet.networks.layers import DepthwiseConv3d, InstanceNorm3d
from dlunet.networks.unet import LEAKY_SLOPE
from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "layers_on_gpu.json"
DIVISIONS = list(itertools.product((128, 256, 512), (14, 56), (4, 8)))
REPEATS = 15

#: Functions of input, weight and bias.
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
Arguments = tuple[Tensor, Tensor, Tensor]


def main() -> None:
    """Time every distinct layer, and write the results after each."""
    if not torch.cuda.is_available():
        raise SystemExit("layers_on_gpu: PyTorch finds no GPU")
    torch.manual_seed(0)
    results: dict[str, Any] = {"layers": {}, "provenance": provenance()}
    for layer, shape in distinct_layers():
        x = torch.randn(shape, device="cuda", dtype=torch.float16)
        times = depthwise_times if isinstance(layer, DepthwiseConv3d) else norm_times
        found = {"copy": {"forward": milliseconds(x.clone)}, **times(layer, x)}
        name = f"{layer} of {shape}"
        print(name, json.dumps(found), flush=True)
        results["layers"][name] = found
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def distinct_layers() -> list[tuple[nn.Module, tuple[int, ...]]]:
    """The layers with the shapes of their inputs, each once."""
    network, found = LightUNet().to("meta"), {}

    def keep(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        shape = tuple(inputs[0].shape)
        found[f"{layer} {shape}"] = layer, shape

    for layer in network.modules():
        if isinstance(layer, DepthwiseConv3d | InstanceNorm3d):
            layer.register_forward_pre_hook(keep)
    network(torch.empty(1, 1, *TABLE_2.patch, device="meta"))
    return list(found.values())


def depthwise_times(layer: DepthwiseConv3d, x: Tensor) -> dict[str, Any]:
    """Milliseconds of a depthwise convolution in each layout, and in Triton by block, depth and warps."""
    weight, bias = torch.randn(layer.weight.shape, device=x.device), torch.randn(x.shape[1], device=x.device)

    def of_pytorch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv3d(x, weight.to(x.dtype), bias.to(x.dtype), layer.stride, layer.padding, groups=x.shape[1])

    def of_triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_triton.depthwise(x, weight, bias, layer.stride)

    last = x.contiguous(memory_format=torch.channels_last_3d)
    found = {
        "PyTorch": attempt(lambda: times(of_pytorch, (x, weight, bias))),
        "PyTorch, channels-last": attempt(lambda: times(of_pytorch, (last, weight, bias))),
        "Triton, errors": attempt(lambda: errors(of_triton, of_pytorch, (x, weight, bias))),
    }
    for block, depth, warps in DIVISIONS:
        with mock.patch.multiple(depthwise_triton, BLOCK=block, DEPTH=depth, WARPS=warps):
            found[f"Triton, {block} {depth} {warps}"] = attempt(lambda: times(of_triton, (x, weight, bias)))
    return found


def norm_times(layer: InstanceNorm3d, x: Tensor) -> dict[str, Any]:
    """Milliseconds of a norm with activation: PyTorch's mixed precision, which uses float32, and Triton."""
    weight, bias = torch.randn(2, x.shape[1], device=x.device)

    def of_pytorch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = x.double() if x.dtype == torch.float64 else x.float()
        normed = F.group_norm(wide, x.shape[1], weight, bias, layer.eps)
        return F.leaky_relu(normed, LEAKY_SLOPE, inplace=True).to(x.dtype)

    def of_triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return normalise(x, weight, bias, layer.eps, LEAKY_SLOPE)

    arguments = (x, weight, bias)
    return {
        "PyTorch": attempt(lambda: times(of_pytorch, arguments)),
        "Triton, errors": attempt(lambda: errors(of_triton, of_pytorch, arguments)),
        "Triton": attempt(lambda: times(of_triton, arguments)),
    }


def times(layer: Layer, arguments: Arguments) -> dict[str, float]:
    """Milliseconds of the forward pass and of gradients."""
    x, *parameters = (value.detach().requires_grad_() for value in arguments)
    output = layer(x, *parameters)
    gradient = torch.randn_like(output)

    def backward(of: Sequence[Tensor]) -> float:
        return milliseconds(lambda: torch.autograd.grad(output, of, gradient, retain_graph=True))

    with torch.no_grad():
        forward = milliseconds(lambda: layer(x, *parameters))
    return {
        "forward": forward,
        "to_x": backward([x]),
        "to_weight": backward(parameters),
        "to_all": backward([x, *parameters]),
    }


def errors(layer: Layer, reference: Layer, arguments: Arguments) -> dict[str, float]:
    """The relative errors of the output and of all gradients."""
    wide = [value.double() for value in arguments]
    gradient = torch.randn_like(reference(*wide)).half()
    found, expected = (_results(f, a, gradient) for f, a in ((layer, arguments), (reference, wide)))
    names = ("output", "to_x", "to_weight", "to_bias")
    return {n: ((f - e).norm() / e.norm()).item() for n, f, e in zip(names, found, expected, strict=True)}


def _results(layer: Layer, arguments: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    arguments = [value.detach().requires_grad_() for value in arguments]
    output = layer(*arguments)
    return [output.detach(), *torch.autograd.grad(output, arguments, gradient.to(output.dtype))]


def milliseconds(run: Callable[[], object]) -> float:
    """The median time of a call, after some for warm-up."""
    for _ in range(3):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return round(median(a.elapsed_time(b) for a, b in itertools.pairwise(marks)), 4)


if __name__ == "__main__":
    main()
