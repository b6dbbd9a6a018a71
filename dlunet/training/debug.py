"""Repeats a step whose gradients were not finite, layer by layer, and says where that began."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError

from dlunet.errors import UserError
from dlunet.methods import Progress
from dlunet.networks import read_description
from dlunet.run_layout import RunLayout
from dlunet.training.build import build_module
from dlunet.training.faults import read_fault
from dlunet.training.module import SegmentationModule

#: Errors of a config that is damaged, or of another run.
UNUSABLE = (KeyError, TypeError, ValueError, RuntimeError, YAMLError, OmegaConfBaseException, InstantiationException)


def debug(path: Path) -> Iterator[str]:
    """Repeat a saved step, and yield what was found, line by line.

    The step runs on the CPU in float32, with PyTorch's layers and its anomaly detection.

    Args:
        path: The file, in the folder of its run.

    Raises:
        UserError: The file or the config of its run cannot be used.
    """
    saved = read_fault(path)
    module = _module_of(saved, RunLayout(path.absolute().parents[1]))
    yield f"step {saved['step']}, in epoch {saved['epoch']}, of {saved['processes']} process(es)"
    for stream, views in saved["batch"].items():
        for view, values in views.items():
            yield f"  {stream}, {view}: {_described(values)}; cases: {', '.join(saved['cases'][stream])}"
    for role, network in module.networks.items():
        wrong = [name for name, weight in network.named_parameters() if not weight.isfinite().all()]
        yield f"  weights of {role}: " + (f"not finite in {', '.join(wrong)}" if wrong else "all finite")
    outputs: list[str] = []
    terms: dict[str, Tensor] = {}
    progress = Progress(saved["step"], saved["epoch"], saved["fraction"])
    with warnings.catch_warnings(record=True) as said, _noting_outputs(module, outputs):
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly(check_nan=True):
                _, terms = module.gradients(saved["batch"], progress, Tensor.backward)
        except RuntimeError as error:  # by which anomaly detection says which operation it was
            frames = [line.strip() for each in said for line in str(each.message).splitlines() if "File" in line]
            yield f"  backward: {str(error).splitlines()[0]}" + (f" Forward: {frames[-1]}" if frames else "")
    for name, value in terms.items():
        yield f"  loss {name}: {float(value):.6g}"
    yield "  first output that is not finite: " + (outputs[0] if outputs else "none")
    for role in module.method.trained:
        gradients = [weight.grad for weight in module.networks[role].parameters() if weight.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm() if gradients else torch.tensor(0.0)
        yield f"  norm of the gradients of {role}: {float(norm):.6g}"


def _module_of(saved: dict[str, Any], run: RunLayout) -> SegmentationModule:
    """The training module of a run, with the networks of a saved step."""
    try:
        config = OmegaConf.load(run.config)
        plan, labels = read_description(saved["described"])
        module = build_module(cast(Any, config), plan, labels)
        module.load_state_dict(saved["state_dict"])
    except OSError as error:
        raise UserError(f"{run.config}: {error.strerror}; expected the config of the run that saved the step") from None
    except UNUSABLE as error:
        raise UserError(
            f"{run.config}: does not fit the step ({str(error).splitlines()[0]}); expected the config of the run that "
            "saved it"
        ) from None
    return module.train()


@contextmanager
def _noting_outputs(module: SegmentationModule, found: list[str]) -> Iterator[None]:
    """While the block runs, note the layers whose output is not finite, in their order."""

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                of_finite = all(each.isfinite().all() for each in inputs if isinstance(each, Tensor))
                kind = type(layer).__name__
                found.append(f"{name} ({kind}), whose input is {'finite' if of_finite else 'not finite either'}")

        return hook

    layers = [(name, layer) for name, layer in module.networks.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(note(name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _described(values: Tensor) -> str:
    """Shape, range, and how many values are not finite."""
    shape, wrong = "×".join(map(str, values.shape)), int((~values.isfinite()).sum())
    known = values[values.isfinite()].float()
    span = f"{float(known.min()):.4g} to {float(known.max()):.4g}" if len(known) else "nothing finite"
    return f"{shape}, {span}" + (f", {wrong} values not finite" if wrong else "")
