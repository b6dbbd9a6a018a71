"""Times training of the light network on a CPU as compiled code beside PyTorch's layers, and measures its memory.

    python benchmarks/compiled_training.py

At the paper's features and a patch of 32×96×96: forward and backward pass of one network, compiled, with DLUNet's
layers and written plainly (``nn.Conv3d``, ``nn.InstanceNorm3d``, default layout); and the whole semi-supervised step of
two networks, compiled and written plainly, with eight separate passes. Before timing, the script checks that all sides
give the same loss and gradients. At the paper's patch of 56×160×160, the peak memory of a process that makes two steps.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlunet.losses import DeepSupervisionLoss, RobustSegmentationLoss
from dlunet.methods import CrossPseudo, Progress, Step
from dlunet.methods.cutmix import cut_mix, draw_masks
from dlunet.networks import LightUNet
from dlunet.networks.layers import DepthwiseConv3d, InstanceNorm3d, PointwiseConv3d, SeparableUpsampling
from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "compiled_training.json"
SMALLER, PAPER = (32, 96, 96), (56, 160, 160)
REPEATS, CLASSES, CLIP = 7, 14, 12.0


class LayeredUNet(LightUNet):
    """The light network with DLUNet's own layers, never compiled."""

    why_not_compiled = "for comparison"  # type: ignore[assignment]


class PlainlyWritten(LayeredUNet):
    """The light network from PyTorch's standard layers, in the default layout."""

    def __init__(self) -> None:
        super().__init__()
        for parent in list(self.modules()):
            for name, layer in list(parent.named_children()):
                setattr(parent, name, plainly(layer))

    def encode(self, x: Tensor) -> list[Tensor]:
        """As in :class:`UNet`, without its change of layout."""
        features = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        return features


def plainly(layer: nn.Module) -> nn.Module:
    """PyTorch's own layer for one of DLUNet's."""
    if isinstance(layer, DepthwiseConv3d):
        size = layer.kernel_size, layer.stride, layer.padding
        return nn.Conv3d(layer.in_channels, layer.out_channels, *size, groups=layer.groups)  # type: ignore[arg-type]
    if isinstance(layer, PointwiseConv3d):
        return nn.Conv3d(layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None)
    if isinstance(layer, InstanceNorm3d):
        return nn.InstanceNorm3d(layer.num_features, affine=True)
    return nn.Sequential(*layer) if isinstance(layer, SeparableUpsampling) else layer


class PlainLoss(RobustSegmentationLoss):
    """NRD + TCE by PyTorch alone, with a one-hot copy of the labels."""

    terms = None  # type: ignore[assignment]


def main() -> None:
    """Check, time and write the results."""
    if sys.argv[1:] == ["memory"]:
        return print(peak_gib_of_step(PAPER))
    results = {"passes of one network": passes(), "step of two networks": steps()}
    output = subprocess.check_output([sys.executable, __file__, "memory"], text=True)
    results["peak GiB, step of two networks"] = {"x".join(map(str, PAPER)): float(output)}
    print(json.dumps(results, indent=2))
    RESULTS.write_text(json.dumps({**results, "provenance": provenance()}, indent=2) + "\n")


def passes() -> dict[str, Any]:
    """Forward and backward pass of one network."""
    sides: dict[str, nn.Module] = {"compiled": LightUNet(), "layers": LayeredUNet(), "plain": PlainlyWritten()}
    patch, labels = torch.randn(1, 1, *SMALLER), torch.randint(0, CLASSES, (1, *SMALLER))
    for network in sides.values():
        network.load_state_dict(sides["compiled"].state_dict())

    def run(network: nn.Module) -> None:
        loss = PlainLoss() if isinstance(network, PlainlyWritten) else RobustSegmentationLoss()
        DeepSupervisionLoss(loss)(network(patch), labels).backward()

    def forward_backward(network: nn.Module) -> None:
        levels = network(patch)[:-1]
        torch.autograd.backward(levels, [torch.ones_like(level) for level in levels])

    for network in sides.values():
        run(network)
    check([gradients(network) for network in sides.values()])
    return timed({name: lambda network=network: forward_backward(network) for name, network in sides.items()})


def steps() -> dict[str, Any]:
    """The semi-supervised step: both networks, both optimisers."""
    batch = draw_batch(SMALLER)
    first = {role: LightUNet() for role in "ab"}
    plain = {role: PlainlyWritten() for role in "ab"}
    for role, network in plain.items():
        network.load_state_dict(first[role].state_dict())
    light_step, plain_step = CompiledStep(first, batch), PlainStep(plain, batch)
    check([[light_step.losses()], [plain_step.losses()]])
    check([gradients(nn.ModuleDict(networks)) for networks in (first, plain)])
    return timed({"compiled": light_step, "plain": plain_step})


class CompiledStep:
    """A step with the classes of the package, as training makes it."""

    def __init__(self, networks: dict[str, LightUNet], batch: dict[str, dict[str, Tensor]]) -> None:
        self.networks, self.batch = networks, batch
        self.method, self.loss = CrossPseudo(), DeepSupervisionLoss(RobustSegmentationLoss())
        parameters = [weight for network in networks.values() for weight in network.parameters()]
        self.optimizer = torch.optim.SGD(parameters, 0.01, 0.99, weight_decay=3e-5, nesterov=True)

    def losses(self) -> Tensor:
        """The losses, after computing their gradients."""
        self.optimizer.zero_grad()
        now, generator = Progress(0, 0, 0.0), torch.Generator().manual_seed(0)
        step = Step(self.networks, self.batch, self.loss, self.loss, now, generator, torch.Tensor.backward)
        terms = self.method.losses(step)
        return torch.stack([terms[role][name].detach() for role in "ab" for name in ("labelled", "unlabelled")])

    def __call__(self) -> None:
        """A whole step."""
        self.losses()
        update(self.networks, self.optimizer)


class PlainStep:
    """A step as one would first write it: eight separate passes."""

    def __init__(self, networks: dict[str, PlainlyWritten], batch: dict[str, dict[str, Tensor]]) -> None:
        self.networks, self.batch = networks, batch
        self.loss = DeepSupervisionLoss(PlainLoss())
        parameters = [weight for network in networks.values() for weight in network.parameters()]
        self.optimizer = torch.optim.SGD(parameters, 0.01, 0.99, weight_decay=3e-5, nesterov=True)

    def losses(self) -> Tensor:
        """The losses, after computing their gradients."""
        self.optimizer.zero_grad()
        labelled, (x_i, x_j) = self.batch["labelled"], (self.batch[f"unlabelled_{k}"]["weak"] for k in "ij")
        mask = draw_masks(len(x_i), x_i.shape[2:], 3, torch.Generator().manual_seed(0))
        pseudo = {}
        for role, network in self.networks.items():
            with torch.no_grad():
                y_i, y_j = ([level.argmax(1) for level in network(x)] for x in (x_i, x_j))
            masks = [nn.functional.interpolate(mask[:, None].float(), y.shape[1:])[:, 0].bool() for y in y_i]
            pseudo[role] = [cut_mix(i, j, of_level) for i, j, of_level in zip(y_i, y_j, masks, strict=True)]
        found = []
        for role, network in self.networks.items():
            found.append(self.loss(network(labelled["weak"]), labelled["label"]))
            found.append(0.8 * self.loss(network(cut_mix(x_i, x_j, mask)), pseudo["b" if role == "a" else "a"]))
        torch.stack(found).sum().backward()
        return torch.stack([value.detach() for value in found])

    def __call__(self) -> None:
        """A whole step."""
        self.losses()
        update(self.networks, self.optimizer)


def update(networks: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Clip the gradients of each network, and make a step."""
    for network in networks.values():
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optimizer.step()


def draw_batch(patch: tuple[int, int, int]) -> dict[str, dict[str, Tensor]]:
    """Smooth random patches, with labels that follow from them."""
    torch.manual_seed(0)
    streams = {}
    for name in ("labelled", "unlabelled_i", "unlabelled_j"):
        coarse = torch.randn(1, 1, *(size // 8 for size in patch))
        streams[name] = {"weak": nn.functional.interpolate(coarse, patch, mode="trilinear")}
    image = streams["labelled"]["weak"]
    streams["labelled"]["label"] = (image[:, 0] * 3 + 7).round().clamp(0, CLASSES - 1).long()
    return streams


def gradients(network: nn.Module) -> list[Tensor]:
    """The gradients of a network, without those of the convolutions' biases, which the normalisation makes 0."""
    named = network.named_parameters()
    return [weight.grad for name, weight in named if weight.grad is not None and not is_bias_of_convolution(name)]


def is_bias_of_convolution(name: str) -> bool:
    """Whether a parameter is the bias of a convolution before a normalisation."""
    return name.endswith("bias") and "norm" not in name


def check(sides: list[list[Tensor]]) -> None:
    """Stop if the sides differ by more than what float32 explains at the kinks of the activation."""
    vectors = [torch.cat([value.flatten().double() for value in side]) for side in sides]
    for other in vectors[1:]:
        difference = float((other - vectors[0]).norm() / vectors[0].norm())
        print("relative difference", difference, flush=True)
        if not difference < 1e-2:
            sys.exit("the sides do not compute the same")


def timed(sides: dict[str, Callable[[], None]]) -> dict[str, Any]:
    """The median time of each side, measured in turn, and the medians of the paired ratios to the first side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(REPEATS + 1):
        for name, run in sides.items():
            begin = time.perf_counter()
            run()
            if repeat:  # the first one warms up
                seconds[name].append(time.perf_counter() - begin)
    first, *others = sides
    ratios = {
        f"{name} / {first}": round(
            statistics.median(a / b for a, b in zip(seconds[name], seconds[first], strict=True)), 2
        )
        for name in others
    }
    medians = {f"{name} ms": round(1000 * statistics.median(values), 1) for name, values in seconds.items()}
    print({**medians, **ratios}, flush=True)
    return {"patch": "x".join(map(str, SMALLER)), **medians, **ratios, "seconds": seconds}


def peak_gib_of_step(patch: tuple[int, int, int]) -> float:
    """The peak memory of this process after two steps."""
    step = CompiledStep({role: LightUNet() for role in "ab"}, draw_batch(patch))
    step()
    step()
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20, 3)


if __name__ == "__main__":
    main()
