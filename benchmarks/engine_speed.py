"""Times one patch of the light network on a CPU with every installed engine and with PyTorch's standard layers.

    python benchmarks/engine_speed.py

The standard layers use PyTorch's default memory layout, as users would write the network. Before timing, the script
checks that all give the same logits: the PyTorch engine to 1e-4 of their range, the others to 1e-3.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from dlunet.errors import UserError
from dlunet.inference import make_engine
from dlunet.inference.engines import ENGINES
from dlunet.labels import FLARE22
from dlunet.networks import Bundle, LightUNet
from dlunet.networks.layers import DepthwiseConv3d, InstanceNorm3d, PointwiseConv3d, SeparableUpsampling
from dlunet.preparation import Intensity, Plan
from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "engine_speed.json"
PATCH, REPEATS = (56, 160, 160), 7
OWN = "own layers"

#: The standard PyTorch layer that each of our layers replaces.
PYTORCHS_OWN: dict[type[nn.Module], type[nn.Module]] = {
    DepthwiseConv3d: nn.Conv3d,
    PointwiseConv3d: nn.Conv3d,
    InstanceNorm3d: nn.InstanceNorm3d,
    SeparableUpsampling: nn.Sequential,
}


def main() -> None:
    """Compare the logits, time all variants in turn, and write the results."""
    torch.manual_seed(0)
    network, patch = LightUNet().eval(), torch.randn(1, 1, *PATCH)
    with torch.inference_mode():
        ways = {OWN: in_default_layout(network)} | installed_engines(network)
        expected = ways[OWN](patch).clone()
        differences = {
            name: float((way(patch) - expected).abs().max() / range_of(expected)) for name, way in ways.items()
        }
        assert differences["torch"] < 1e-4 and max(differences.values()) < 1e-3, differences
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(REPEATS):
            for name, way in ways.items():
                begin = time.perf_counter()
                way(patch)
                seconds[name].append(round(time.perf_counter() - begin, 3))
    medians = {name: median(times) for name, times in seconds.items()}
    results = {
        "patch": PATCH,
        "threads": torch.get_num_threads(),
        "largest_difference_of_range": differences,
        "seconds": seconds,
        "medians": medians,
        "times_faster_than_own_layers": {name: round(medians[OWN] / value, 2) for name, value in medians.items()},
        "provenance": provenance(),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    shown = ("largest_difference_of_range", "medians", "times_faster_than_own_layers")
    print(json.dumps({key: results[key] for key in shown}, indent=2))


def installed_engines(network: LightUNet) -> dict[str, Callable[[Tensor], Tensor]]:
    """The engines that run on this machine's CPU."""
    bundle = Bundle(network, Plan((2.5, 1.5, 1.5), PATCH, Intensity(0, 1, 0, 1)), FLARE22)
    engines: dict[str, Callable[[Tensor], Tensor]] = {}
    for name in ENGINES:
        try:
            engines[name] = make_engine(bundle, name, "cpu", "float32")
        except UserError as error:
            print(error)
    return engines


def range_of(logits: Tensor) -> Tensor:
    """The difference between the largest and the smallest logit."""
    return logits.max() - logits.min()


def in_default_layout(network: LightUNet) -> LightUNet:
    """The same weights in PyTorch's standard layers, with input in the default layout."""
    plain = copy.deepcopy(network)
    for module in plain.modules():
        module.__class__ = PYTORCHS_OWN.get(type(module), type(module))
    plain.encoder[0].register_forward_pre_hook(_default_layout)
    return plain


def _default_layout(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].clone(memory_format=torch.contiguous_format)


if __name__ == "__main__":
    main()
