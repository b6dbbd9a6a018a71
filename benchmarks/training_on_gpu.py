"""Times and profiles the semi-supervised step of the paper's Table 2 on a GPU, and variants of how it is computed.

    python benchmarks/training_on_gpu.py [--only NAME …]
    TRITON_INTERPRET=1 python benchmarks/training_on_gpu.py --check-on-cpu

The step is the package's: two light U-Nets, patches of 56×160×160, cross pseudo supervision with CutMix, NRD + TCE with
deep supervision, float16 autocast, gradient clipping, SGD. The patches are ready on the GPU. Before it is timed, each
variant computes the losses and gradients of a float32 step with PyTorch's own kernels from the same weights, patches
and pseudo-labels; the relative errors are in the results. A variant that fails does not stop the others.

``--check-on-cpu`` only compares the variants, on a small network in float32: for a machine without a GPU. In the
interpreter, Triton's depthwise convolutions take more than ten minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from dlunet.losses import DeepSupervisionLoss, RobustSegmentationLoss
from dlunet.methods import CrossPseudo, Progress, Step, Terms, cross_pseudo, mixed_pseudo_labels
from dlunet.networks import LightUNet
from dlunet.networks.layers import DepthwiseConv3d, InstanceNorm3d, PointwiseConv3d
from dlunet.networks.unet import FEATURES, LightStage
from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "training_on_gpu.json"
CLASSES, WEIGHT, CLIP = 14, 0.8, 12.0
WARM_UP, REPEATS = 3, 7


@dataclass(frozen=True)
class Scale:
    """Where and how large the step is."""

    device: str
    patch: tuple[int, int, int]
    features: tuple[int, ...]


TABLE_2 = Scale("cuda", (56, 160, 160), FEATURES)
ON_CPU = Scale("cpu", (8, 64, 64), (4,) * 6)


@dataclass(frozen=True)
class Variant:
    """How a step is computed.

    Attributes:
        depthwise: Whether ``depthwise_triton.py`` computes the depthwise convolutions.
        norm: Whether ``norm_triton.py`` computes the norms with their activations.
        product: Whether a pointwise convolution is a matrix product.
        channels_last: Whether activations are channels-last.
        compiled: The mode of torch.compile; None: not compiled.
        search: Whether cuDNN tries its algorithms and keeps the fastest.
        precision: The precision of autocast; float32: none.
    """

    depthwise: bool = False
    norm: bool = False
    product: bool = False
    channels_last: bool = False
    compiled: str | None = None
    search: bool = False
    precision: torch.dtype = torch.float16


REFERENCE = Variant(precision=torch.float32)
VARIANTS = {
    "as it is": Variant(),
    "bfloat16": Variant(precision=torch.bfloat16),
    "channels-last": Variant(channels_last=True),
    "cuDNN search": Variant(search=True),
    "pointwise as a product": Variant(product=True),
    "Triton depthwise": Variant(depthwise=True),
    "Triton norm": Variant(norm=True),
    "Triton depthwise and norm": Variant(depthwise=True, norm=True),
    "torch.compile": Variant(compiled="default"),
    "torch.compile, Triton depthwise": Variant(compiled="default", depthwise=True),
    "torch.compile with CUDA graphs": Variant(compiled="reduce-overhead"),
}

#: Kinds of kernel by name; the first match counts.
KINDS = {
    "depthwise, weight gradient": r"depthwise3d_cuda_backward_weight|_weight_gradient_kernel",
    "depthwise, input gradient": r"depthwise3d_cuda_backward_input",
    "depthwise, forward": r"conv_depthwise3d",
    "depthwise, forward and input gradient": r"^_convolve_kernel",
    "compiled": r"^triton_",
    "norm": r"GroupNorm|group_norm|RowwiseMoments|ComputeInternalGradients|GammaBeta|ComputeBackwardFused"
    r"|^_(moments|normalise|sums|gradient)_kernel",
    "pointwise and transposed": r"gemm|cutlass|xmma|cudnn|nchwTo|nhwcTo|convolve|dgrad|wgrad|splitK|implicit"
    r"|tensorTransform",
    "argmax": r"(?i)argmax",
    "optimiser": r"(?i)multi_tensor|lpnorm|amp_",
    "softmax": r"(?i)softmax",
    "activation": r"leaky_relu",
    "concatenation": r"CatArray",
    "conversions and copies": r"copy|Memcpy|Memset|FillFunctor",
}


class Training:
    """Networks, optimiser and patches of a variant, drawn from the same seed for all."""

    def __init__(self, variant: Variant, scale: Scale) -> None:
        torch.manual_seed(0)
        self.precision, self.device = variant.precision, scale.device
        self.networks: dict[str, nn.Module] = {role: LightUNet(features=scale.features) for role in "ab"}
        for role, network in self.networks.items():
            network.to(scale.device).train().role = role
            if variant.channels_last:
                network.register_forward_pre_hook(_channels_last)
        torch.compiler.reset()  # which counts what it compiled by function, for all variants together
        self.called = {role: _compiled(network, variant.compiled) for role, network in self.networks.items()}
        self.weights = [weight for network in self.networks.values() for weight in network.parameters()]
        self.optimizer = torch.optim.SGD(self.weights, 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
        self.scaler = torch.amp.GradScaler(scale.device, enabled=variant.precision == torch.float16)
        self.method = CrossPseudo(WEIGHT)
        streams = ("labelled", "unlabelled_i", "unlabelled_j")
        self.batch = {name: {"weak": patch(scale).to(scale.device)} for name in streams}
        self.batch["labelled"]["label"] = blocks(CLASSES, scale)[:, 0].long().to(scale.device)

    def backward(self) -> Terms:
        """Compute all losses and, scaled, their gradients."""
        loss = DeepSupervisionLoss(RobustSegmentationLoss())
        step = Step(self.called, self.batch, loss, loss, Progress(0, 0, 0.0), torch.Generator().manual_seed(0))
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(self.device, self.precision, enabled=self.precision != torch.float32):
            terms = self.method.losses(step)
        self.optimizer.zero_grad()
        for of_network in terms.values():
            self.scaler.scale(torch.stack(list(of_network.values())).sum()).backward()
        return terms

    def step(self) -> None:
        """One training step."""
        self.backward()
        self.scaler.unscale_(self.optimizer)
        for network in self.networks.values():
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def results(self) -> tuple[Tensor, Tensor]:
        """The loss terms, and the gradients of all weights as one vector."""
        terms = self.backward()
        losses = torch.stack([value.detach() for named in terms.values() for value in named.values()])
        # The coarsest head, which has weight 0 in the loss, has no gradient, or 0 if compiled.
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        scale = self.scaler.get_scale()
        return losses.double(), torch.cat([gradient.flatten() for gradient in gradients]).double() / scale


def main() -> None:
    """Check, time and profile each variant, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--check-on-cpu", action="store_true")
    options = parser.parse_args()
    if options.check_on_cpu:
        torch.set_num_threads(1)  # networks one after the other: Triton's interpreter allows one thread
        for name in options.only:
            print(f"{name}: {attempt(partial(errors, VARIANTS[name], ON_CPU))}", flush=True)
        return
    if not torch.cuda.is_available():
        raise SystemExit("training_on_gpu: PyTorch finds no GPU")
    results: dict[str, Any] = {"variants": {}, "provenance": provenance()}
    results["provenance"]["versions"]["triton"] = version("triton") if find_spec("triton") else None
    for name in options.only:
        checked = attempt(partial(errors, VARIANTS[name], TABLE_2))
        found = {"errors": checked, **attempt(partial(measured, VARIANTS[name]))}
        print(f"{name}: {found}", flush=True)
        results["variants"][name] = found
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a function returns, or why it failed."""
    try:
        return run()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:500]}


def errors(variant: Variant, scale: Scale) -> dict[str, Any]:
    """The relative errors of losses and gradients."""
    if scale.device == "cpu":
        variant = Variant(**{**vars(variant), "precision": torch.float32})
    with mock.patch.object(cross_pseudo, "mixed_pseudo_labels", pseudo_labels_once()):
        # Computed again for each variant rather than kept on the GPU.
        with in_force(REFERENCE):
            expected = Training(REFERENCE, scale).results()
        with in_force(variant):
            found = Training(variant, scale).results()
    losses, gradients = (((f - e).norm() / e.norm()).item() for f, e in zip(found, expected, strict=True))
    return {"losses": losses, "gradients": gradients}


def measured(variant: Variant) -> dict[str, Any]:
    """The median time of a step, peak memory, and a profile."""
    torch.cuda.empty_cache()
    with in_force(variant):
        training = Training(variant, TABLE_2)
        for _ in range(WARM_UP):
            training.step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times = [seconds_of(training.step) for _ in range(REPEATS)]
        peak = torch.cuda.max_memory_allocated()
        kinds, longest = profile(training.step)
    step_ms = round(1000 * median(times), 2)
    return {"step_ms": step_ms, "peak_gib": round(peak / 2**30, 3), "kinds_ms": kinds, "longest_ms": longest}


def seconds_of(run: Callable[[], object]) -> float:
    """The time of one call, with all its work on the GPU."""
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def profile(run: Callable[[], object]) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds by kind of kernel, and of the longest kernels by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    on_gpu = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [event for event in on_gpu if not event.is_user_annotation]
    kinds: dict[str, float] = {}
    names: dict[str, float] = {}
    for kernel in kernels:
        spent = kernel.time_range.elapsed_us() / 1000
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel.name)), "other elementwise")
        kinds[kind] = kinds.get(kind, 0) + spent
        names[kernel.name[:160]] = names.get(kernel.name[:160], 0) + spent
    span = max(kernel.time_range.end for kernel in kernels) - min(kernel.time_range.start for kernel in kernels)
    kinds["gaps"] = span / 1000 - sum(kinds.values())
    return _largest(kinds), _largest(names, 15)


def _largest(values: dict[str, float], count: int | None = None) -> dict[str, float]:
    return {name: round(value, 3) for name, value in sorted(values.items(), key=lambda item: -item[1])[:count]}


@contextmanager
def in_force(variant: Variant) -> Iterator[None]:
    """Compute as a variant does; float32 is not rounded to TF32."""
    with ExitStack() as stack:
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=variant.search, allow_tf32=False))
        for layer, forward in replaced(variant).items():
            stack.enter_context(mock.patch.object(layer, "forward", forward))
        yield


def replaced(variant: Variant) -> dict[type[nn.Module], Callable[..., Tensor]]:
    """The layers that a variant computes in another way."""
    layers: dict[type[nn.Module], Callable[..., Tensor]] = {}
    if variant.depthwise:
        from depthwise_triton import depthwise

        layers[DepthwiseConv3d] = lambda layer, x: depthwise(x, layer.weight, layer.bias, layer.stride)
    if variant.norm:
        layers[LightStage] = stage_with_triton_norm
    if variant.product:
        layers[PointwiseConv3d] = pointwise_product
    return layers


def stage_with_triton_norm(stage: LightStage, x: Tensor) -> Tensor:
    """:class:`LightStage`, with norm and activation in one pass."""
    from norm_triton import normalise

    def activated(norm: InstanceNorm3d, x: Tensor) -> Tensor:
        return normalise(x, norm.weight, norm.bias, norm.eps, stage.activation.negative_slope)

    a = stage.conv1(x)
    return activated(stage.norm2, a + stage.conv2(activated(stage.norm1, a)))


def pointwise_product(layer: PointwiseConv3d, x: Tensor) -> Tensor:
    """:class:`PointwiseConv3d` as a matrix product in the default layout."""
    weight = layer.weight.flatten(1).expand(len(x), -1, -1)
    y = weight @ x.flatten(2) if layer.bias is None else torch.baddbmm(layer.bias[:, None], weight, x.flatten(2))
    return y.unflatten(2, x.shape[2:])


def pseudo_labels_once() -> Callable[..., list[Tensor]]:
    """The first pseudo-labels of each network for all later calls: rounding changes those of some voxels."""
    kept: dict[str, list[Tensor]] = {}

    def repeated(network: nn.Module, *arguments: Tensor) -> list[Tensor]:
        role = str(network.role)
        if role not in kept:
            kept[role] = mixed_pseudo_labels(network, *arguments)
        return kept[role]

    return repeated


def patch(scale: Scale) -> Tensor:
    """A random patch with structures and noise."""
    return blocks(5, scale) - 2 + 0.3 * torch.randn(1, 1, *scale.patch)


def blocks(values: int, scale: Scale) -> Tensor:
    """Random integers below ``values``, constant in blocks of 8 voxels."""
    coarse = torch.randint(values, (1, 1, *(size // 8 for size in scale.patch))).float()
    return nn.functional.interpolate(coarse, scale.patch, mode="nearest")


def _compiled(network: nn.Module, mode: str | None) -> nn.Module:
    return torch.compile(network, mode=mode, dynamic=False) if mode else network


def _channels_last(network: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
    return (arguments[0].contiguous(memory_format=torch.channels_last_3d),)


if __name__ == "__main__":
    main()
