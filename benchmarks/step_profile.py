"""Profiles the semi-supervised training step on a CPU: CPU time of its parts, and of each operation of the network.

    python benchmarks/step_profile.py

With one thread, since sums of CPU time do not depend on what else runs; for the network and the patch of ``scale=cpu``
and for the paper's features with a patch of 32×96×96. Median of several steps.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from ctypes import byref
from pathlib import Path
from typing import Any
from unittest.mock import patch as patched

import torch
from compiled_training import SMALLER, CompiledStep, draw_batch

from dlunet.configs import compose
from dlunet.losses import DeepSupervisionLoss, compiled
from dlunet.methods import cross_pseudo
from dlunet.native.program import Program
from dlunet.networks import LightUNet, build_network
from dlunet.networks import compiled as compiled_network
from dlunet.provenance import provenance
from dlunet.training.build import plain

RESULTS = Path(__file__).parent / "results" / "step_profile.json"
STEPS, WARM_UP = 7, 2


def main() -> None:
    """Profile both sizes and write the results."""
    torch.set_num_threads(1)
    config = compose("train", ["scale=cpu", "data=phantom"])
    small = {**plain(config.network), "num_classes": 14}
    sizes: dict[str, tuple[Callable[[], Any], tuple[int, int, int]]] = {
        "scale=cpu": (lambda: build_network(small), tuple(config.plan.patch_size)),
        "paper's features": (LightUNet, SMALLER),
    }
    results = {
        name: {
            "patch": "x".join(map(str, patch)),
            "parts, CPU ms of a step": parts(make, patch),
            "operations, CPU ms of a patch": operations(make(), patch),
        }
        for name, (make, patch) in sizes.items()
    }
    print(json.dumps(results, indent=2))
    RESULTS.write_text(json.dumps({**results, "provenance": provenance()}, indent=2) + "\n")


def parts(make: Callable[[], Any], patch: tuple[int, int, int]) -> dict[str, float]:
    """The median CPU time of each part of a step, in ms; parts may contain each other."""
    step = CompiledStep({role: make() for role in "ab"}, draw_batch(patch))
    spent: dict[str, float] = defaultdict(float)
    found: dict[str, list[float]] = defaultdict(list)

    def timing(owner: Any, name: str, label: str) -> AbstractContextManager:
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            result = function(*args, **kwargs)
            spent[label] += 1000 * (time.process_time() - begin)
            return result

        return patched.object(owner, name, timed)

    with (
        timing(cross_pseudo, "mixed_pseudo_labels", "pseudo-labels, with their passes"),
        timing(compiled_network._Run, "forward", "passes, forward"),
        timing(compiled_network._Run, "backward", "passes, backward"),
        timing(DeepSupervisionLoss, "forward", "losses"),
        timing(compiled._ClassSums, "backward", "gradients of the losses"),
        timing(step, "losses", "losses and gradients of both networks"),
    ):
        for number in range(WARM_UP + STEPS):
            spent.clear()
            begin = time.process_time()
            step()
            spent["step"] = 1000 * (time.process_time() - begin)
            if number >= WARM_UP:
                for label, milliseconds in spent.items():
                    found[label].append(milliseconds)
    return {label: round(statistics.median(values), 2) for label, values in found.items()}


def operations(network: Any, patch: tuple[int, int, int]) -> list[dict[str, Any]]:
    """The CPU time of each operation of the network for one patch, in order, forward and backward."""
    program = Program(network, patch, every_level=True, trains=True)
    image = torch.randn(network.in_channels, *patch)
    found: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for number in range(WARM_UP + STEPS):
        logits = [torch.empty(shape) for shape in program.logit_shapes]
        to_logits = [*map(torch.randn_like, logits[:-1]), None]
        to_parameters = torch.zeros(program.num_parameters)
        for place, (function, operation) in enumerate(program.forward(image, logits)):
            found[place, "forward", describe(operation)].append(cpu_ms(function, operation))
        for place, (function, operation) in enumerate(program.backward(to_logits, None, to_parameters)[0]):
            found[place, "backward", describe(operation)].append(cpu_ms(function, operation))
        program.release()
        if number < WARM_UP:
            found.clear()
    return [
        {"direction": direction, "operation": text, "ms": round(statistics.median(values), 2)}
        for (_, direction, text), values in found.items()
    ]


def cpu_ms(function: Any, operation: Any) -> float:
    """The CPU time of one call."""
    begin = time.process_time()
    function(byref(operation), 1)
    return 1000 * (time.process_time() - begin)


def describe(operation: Any) -> str:
    """Kind, channels and size of an operation."""
    kind = type(operation).__name__.lower()
    if kind == "separable":
        out, shape = operation.out.contents.channels, operation.out.contents.shape
    else:
        source = operation if kind == "source" else operation.source
        out, shape = source.values.contents.channels, source.values.contents.shape
    return f"{'upsampling' if kind == 'source' else kind}, {out} channels, {'x'.join(map(str, shape))}"


if __name__ == "__main__":
    main()
