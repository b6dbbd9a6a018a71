"""One patch of the light network on a CPU, beside the same network of PyTorch's own layers in the default layout.

Checked first: both give the same logits, to 1e-4 of their range.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from dlunet.networks import LightUNet
from dlunet.networks.layers import DepthwiseConv3d, InstanceNorm3d, PointwiseConv3d, SeparableUpsampling
from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "torch_engine.json"
PATCH, REPEATS = (56, 160, 160), 5

#: What each of our layers stands in for.
PYTORCHS_OWN: dict[type[nn.Module], type[nn.Module]] = {
    DepthwiseConv3d: nn.Conv3d,
    PointwiseConv3d: nn.Conv3d,
    InstanceNorm3d: nn.InstanceNorm3d,
    SeparableUpsampling: nn.Sequential,
}


def main() -> None:
    """Compare, time in turn, and write the results."""
    torch.manual_seed(0)
    network = LightUNet().eval()
    networks = {"dlunet": network, "default layout": in_default_layout(network)}
    patch = torch.randn(1, 1, *PATCH)
    with torch.inference_mode():
        ours, theirs = (one(patch) for one in networks.values())
        difference = float((ours - theirs).abs().max() / (theirs.max() - theirs.min()))
        assert difference < 1e-4, difference
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(REPEATS):
            for name, one in networks.items():
                begin = time.perf_counter()
                one(patch)
                seconds[name].append(round(time.perf_counter() - begin, 3))
    medians = {name: median(times) for name, times in seconds.items()}
    results = {
        "patch": PATCH,
        "threads": torch.get_num_threads(),
        "largest_difference_of_range": difference,
        "seconds": seconds,
        "medians": medians,
        "ratio": round(medians["default layout"] / medians["dlunet"], 2),
        "provenance": provenance(),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({key: results[key] for key in ("largest_difference_of_range", "medians", "ratio")}, indent=2))


def in_default_layout(network: LightUNet) -> LightUNet:
    """The same weights in PyTorch's own layers, fed in the default layout."""
    plain = copy.deepcopy(network)
    for module in plain.modules():
        module.__class__ = PYTORCHS_OWN.get(type(module), type(module))
    plain.encoder[0].register_forward_pre_hook(_default_layout)
    return plain


def _default_layout(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].clone(memory_format=torch.contiguous_format)


if __name__ == "__main__":
    main()
