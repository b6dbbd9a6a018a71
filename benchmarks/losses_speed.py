"""Times the compiled losses and pseudo-labels on a CPU, beside PyTorch's.

    python benchmarks/losses_speed.py

A loss is timed with its gradient, with random logits in both memory layouts and the labels of synthetic organs: boxes.
Before timing, the script checks that both sides agree with float64 to 1e-5.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dlunet.losses import (
    DiceCrossEntropyLoss,
    NoiseRobustDiceLoss,
    RobustSegmentationLoss,
    TaylorCrossEntropyLoss,
    largest_class,
)
from dlunet.losses import compiled as compiled_losses
from dlunet.native import why_unavailable
from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "losses_speed.json"
REPEATS, TOLERANCE = 7, 1e-5
SHAPES = ((2, 14, 32, 96, 96), (2, 14, 32, 48, 64))
LAYOUTS = {"classes first": torch.contiguous_format, "channels last": torch.channels_last_3d}
LOSSES = {
    "NRD": NoiseRobustDiceLoss(),
    "TCE": TaylorCrossEntropyLoss(),
    "NRD + TCE": RobustSegmentationLoss(),
    "NRD + TCE as published": RobustSegmentationLoss(tce_variant="published"),
    "Dice + CE": DiceCrossEntropyLoss(),
}


def main() -> None:
    """Check and time both sides for every loss, shape and layout."""
    if reason := why_unavailable():
        sys.exit(reason)
    rows = []
    for shape in SHAPES:
        for layout, memory_format in LAYOUTS.items():
            logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
            logits, target = logits.contiguous(memory_format=memory_format), boxes(shape)
            tasks = {name: both_sides(loss, logits, target) for name, loss in LOSSES.items()}
            for loss in LOSSES.values():
                check(loss, logits, target)
            tasks["pseudo-labels"] = {
                "compiled": lambda x=logits: largest_class(x),
                "torch": lambda x=logits: x.argmax(1),
            }
            assert torch.equal(*(side().long() for side in tasks["pseudo-labels"].values()))
            for name, sides in tasks.items():
                rows.append({"task": name, "shape": shape, "layout": layout, **timed(sides)})
                print(rows[-1], flush=True)
    threads = torch.get_num_threads()
    RESULTS.write_text(json.dumps({"threads": threads, "rows": rows, "provenance": provenance()}, indent=2) + "\n")


def boxes(shape: tuple[int, ...]) -> Tensor:
    """Labels (B, z, y, x): a box for each class, in background."""
    generator = torch.Generator().manual_seed(1)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.uint8)
    for label in range(1, shape[1]):
        z, y, x = (int(torch.randint(0, size - size // 4, (), generator=generator)) for size in shape[2:])
        target[:, z : z + shape[2] // 4, y : y + shape[3] // 4, x : x + shape[4] // 4] = label
    return target


def both_sides(loss: torch.nn.Module, logits: Tensor, target: Tensor) -> dict[str, Callable[[], Any]]:
    """Loss and gradient with compiled code and with PyTorch's."""

    def compiled() -> tuple[Tensor, Tensor]:
        leaf = logits.detach().requires_grad_()
        value = loss(leaf, target)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    def torch_alone() -> tuple[Tensor, Tensor]:
        with patch.object(compiled_losses, "class_sums", lambda *_: None):
            return compiled()

    return {"compiled": compiled, "torch": torch_alone}


def check(loss: torch.nn.Module, logits: Tensor, target: Tensor) -> None:
    """Check value and gradient of both sides against float64."""
    value, gradient = both_sides(loss, logits.double(), target)["torch"]()
    for side, run in both_sides(loss, logits, target).items():
        found, slope = run()
        errors = abs(found - value) / value, (slope - gradient).norm() / gradient.norm()
        assert max(errors) < TOLERANCE, (loss, side, errors)


def timed(sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median times in ms of sides that run in turn, and the median of their ratios."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(REPEATS):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
            begin = time.perf_counter()
            sides[name]()
            found[name].append(1000 * (time.perf_counter() - begin))
    ratios = (slow / fast for fast, slow in zip(found["compiled"], found["torch"], strict=True))
    return {
        **{f"{name}_ms": round(median(times), 2) for name, times in found.items()},
        "ratio": round(median(ratios), 2),
    }


if __name__ == "__main__":
    main()
