"""Evaluates the networks on a few unlabelled patches that stay the same over the run: how they agree and teach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from dlunet.labels import LabelSet
from dlunet.methods import Method, probabilities
from dlunet.phantom import phantom_of
from dlunet.preparation import Plan, PreparedCase
from dlunet.preparation.resampling import resample_labels, separate_axis
from dlunet.sampling.sampler import crop
from dlunet.training.dashboards.boards import Picture, draws, log_pictures, log_scalars, validates
from dlunet.training.module import SegmentationModule
from dlunet.volumes.slices import grey

#: The number of patches, each from another case: a mix needs two, and more would take more than 1 % of a short run.
PATCHES = 2
#: The confidence that counts as sure where a method has no threshold: FixMatch's.
THRESHOLD = 0.95


@dataclass(frozen=True)
class Patches:
    """Patches without augmentation.

    Attributes:
        images: (B, 1, z, y, x), prepared intensities.
        truth: The labels (B, z, y, x) that the generator of synthetic CTs knows; None for all others.
    """

    images: Tensor
    truth: Tensor | None


@dataclass(frozen=True)
class Seen:
    """What a network makes of the patches.

    Attributes:
        labels: The most probable classes (B, z, y, x).
        confidence: The mean probability of these.
        kept: The fraction of voxels at which it reaches a threshold.
    """

    labels: Tensor
    confidence: float
    kept: float


class Probe(Callback):
    """Logs, whenever the run validates, how its networks segment the central patches of a few unlabelled cases.

    For every pair of trained networks, and for every trained network and its moving average, ``probe/agreement_A_B``:
    the mean DSC over the classes that one of the two finds. For every network that teaches (the moving averages, or the
    trained networks if there are none), ``probe/confidence_A``: the mean probability of the predicted class;
    ``probe/kept_A``: the fraction of voxels where it reaches the method's threshold, or 0.95; and on synthetic CTs
    ``probe/pseudo_dsc_A``: the mean DSC with the truth, over the classes in it. Agreement and DSC are logged for each
    class, too, over all patches at once. Where a method mixes patches, ``pictures/mix`` shows a mix of two.

    Args:
        cases: The unlabelled cases, each with the file of its CT.
        labels: The classes.
        plan: The plan of the prepared cases.
    """

    def __init__(self, cases: Sequence[tuple[PreparedCase, Path]], labels: LabelSet, plan: Plan) -> None:
        self.cases = [cases[k * len(cases) // PATCHES] for k in range(PATCHES)] if len(cases) > PATCHES else list(cases)
        self.labels = labels
        self.plan = plan
        self._patches: Patches | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Cut the patches, in the precision of training."""
        if trainer.is_global_zero:
            patches = cut_patches(self.cases, self.plan)
            self._patches = replace(patches, images=trainer.precision_plugin.convert_input(patches.images))

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Evaluate the networks after a validation; also if there are no validation cases."""
        assert isinstance(module, SegmentationModule)
        if self._patches is None or not validates(trainer):
            return
        with evaluating(module), trainer.precision_plugin.forward_context():
            log_scalars(trainer, probe(module.method, dict(module.networks.items()), self._patches, self.labels))
            if draws(trainer) and len(self.cases) > 1:
                self._draw_mix(trainer, module, *self._patches.images[:2].to(module.device).split(1))

    def _draw_mix(self, trainer: lightning.Trainer, module: SegmentationModule, x_i: Tensor, x_j: Tensor) -> None:
        mix = module.method.mix(dict(module.networks.items()), x_i, x_j, torch.Generator().manual_seed(0))
        if mix is None:
            return
        # The slice with the most voxels from the other patch: it is always the same one.
        z = int((mix.patches != x_i).sum(dim=(0, 1, 3, 4)).argmax())
        by = {f"by_{role}": label_map[0, z].cpu().numpy() for role, label_map in mix.pseudo_labels.items()}
        first, second = (case.name for case, _ in self.cases[:2])
        picture = Picture(as_grey(mix.patches[0, 0, z], self.plan), by, f"{second} in {first}")
        log_pictures(trainer, {"pictures/mix": picture}, self.labels)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluate a module, without gradients, while the block runs; then restore the mode of each of its parts."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def cut_patches(cases: Sequence[tuple[PreparedCase, Path]], plan: Plan) -> Patches:
    """The central patches of cases, with their truth if all CTs are synthetic.

    Args:
        cases: The cases, each with the file of its CT.
        plan: The plan of the prepared cases.
    """
    images = [
        _central(case.image, plan).to(torch.float32) * case.quantisation_step  # (1, z, y, x)
        for case, _ in cases
    ]
    truths = [_truth(case, image, plan) for case, image in cases]
    known = [truth for truth in truths if truth is not None]
    return Patches(torch.stack(images), torch.stack(known) if len(known) == len(truths) else None)


def probe(method: Method, networks: Mapping[str, nn.Module], patches: Patches, labels: LabelSet) -> dict[str, float]:
    """The values that :class:`Probe` logs, by name; those that are not defined are left out.

    Args:
        method: The method.
        networks: Its networks by role, in evaluation mode.
        patches: The patches.
        labels: The classes.
    """
    teaching = list(method.averaged or method.trained)
    pairs = [*combinations(method.trained, 2), *((kind.of, role) for role, kind in method.averaged.items())]
    roles = dict.fromkeys([*teaching, *(role for pair in pairs for role in pair)])
    seen = {role: look(networks[role], patches.images, _threshold(method)) for role in roles}
    values: dict[str, float] = {}
    for one, other in pairs:
        values |= _dsc(f"probe/agreement_{one}_{other}", seen[one].labels, seen[other].labels, labels)
    for role in teaching:
        values |= {f"probe/confidence_{role}": seen[role].confidence, f"probe/kept_{role}": seen[role].kept}
        if patches.truth is not None:
            values |= _dsc(f"probe/pseudo_dsc_{role}", seen[role].labels, patches.truth, labels, only_in_other=True)
    return values


def look(network: nn.Module, images: Tensor, threshold: float) -> Seen:
    """Segment patches (B, 1, z, y, x) one by one, which takes less memory than all at once."""
    device = next(network.parameters()).device
    label_maps, confidences, kept = [], [], []
    for image in images:
        confidence, label_map = probabilities(network(image[None].to(device))).max(1)
        label_maps.append(label_map.to(torch.uint8))
        confidences.append(confidence.mean())
        kept.append((confidence >= threshold).to(torch.float32).mean())
    return Seen(torch.cat(label_maps).cpu(), float(torch.stack(confidences).mean()), float(torch.stack(kept).mean()))


def as_grey(slice_: Tensor, plan: Plan) -> np.ndarray:
    """A slice (y, x) of prepared intensities as grey values 0 … 1."""
    return grey(slice_.float().cpu().numpy() * plan.intensity.std + plan.intensity.mean)


def _threshold(method: Method) -> float:
    """The confidence that counts as sure: the method's, if it has one for all classes."""
    found: Any = getattr(method, "threshold", None)
    is_one = isinstance(found, (int, float)) or (isinstance(found, Tensor) and found.numel() == 1)
    return float(found) if is_one else THRESHOLD


def _dsc(name: str, one: Tensor, other: Tensor, labels: LabelSet, only_in_other: bool = False) -> dict[str, float]:
    """The DSC of the classes in either of two batches of label maps, or only of those in the other, and their mean."""
    counts = [
        torch.bincount(voxels.flatten().long(), minlength=labels.num_classes)
        for voxels in (one, other, one[one == other])
    ]
    in_one, in_other, in_both = (count.tolist() for count in counts)
    found = {
        label.abbreviation: 2 * in_both[label.id] / (in_one[label.id] + in_other[label.id])
        for label in labels
        if in_other[label.id] or (in_one[label.id] and not only_in_other)
    }
    if not found:
        return {}
    return {name: sum(found.values()) / len(found)} | {f"{name}/{organ}": dsc for organ, dsc in found.items()}


def _truth(case: PreparedCase, image: Path, plan: Plan) -> Tensor | None:
    phantom = phantom_of(image)
    if phantom is None:
        return None
    return _central(resample_labels(phantom.labels, case.shape, separate_axis(phantom.spacing, plan.spacing)), plan)


def _central(volume: np.ndarray, plan: Plan) -> Tensor:
    """The patch in the middle of a volume (…, z, y, x)."""
    return crop(volume, [size // 2 for size in volume.shape[-3:]], plan.patch_size)
