"""FixMatch: confident predictions on a weak view label a strong view (Sohn et al. 2020, arXiv 2001.07685)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from dlunet.methods.base import Method, Mix, Step, Stream, Terms, Trained
from dlunet.methods.confidence import SurePseudoLabels
from dlunet.methods.cutmix import cut_mix, draw_masks
from dlunet.methods.outputs import pseudo_labels


class FixMatch(Method):
    """One network teaches itself: confident predictions on the weak view are the targets for the strong view.

    Equation 4 per voxel: the mean of 1(max q ≥ τ)·H(argmax q, p) over all voxels. For segmentation, the strong view is
    mixed with that of another patch by CutMix, as in Yang et al. 2023 (arXiv 2208.09910); their boxes are of two
    dimensions, those here are one box of :func:`draw_box` per patch.

    Args:
        threshold: τ.
        unlabelled_weight: λ of the total loss.
        cut_mix: The probability that the strong view of a patch is mixed.
        supervised_epochs: See :class:`Method`.
    """

    networks = {"a": Trained()}  # noqa: RUF012
    predicts = "a"
    views: tuple[str, ...] = ("strong",)

    def __init__(
        self,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        cut_mix: float = 0.5,
        supervised_epochs: int = 0,
    ) -> None:
        super().__init__(supervised_epochs)
        views = ("weak", *self.views)
        self.streams = {
            "labelled": Stream(labelled=True),
            "unlabelled": Stream(labelled=False, views=views),
            "unlabelled_j": Stream(labelled=False, views=views, other_than="unlabelled"),
        }
        self.threshold = threshold
        self.unlabelled_weight = unlabelled_weight
        self.cut_mix = cut_mix

    def losses(self, step: Step) -> Terms:
        """The labelled term and, after the supervised epochs, that of the confident voxels."""
        network = step.networks["a"]
        terms = step.from_labels(network)
        if "unlabelled" in step.batch:
            i, j = (self.sure(network, step.batch[name]["weak"]) for name in ("unlabelled", "unlabelled_j"))
            terms["unlabelled"] = self.unlabelled_weight * self.on_strong(step, "strong", i, j)
        return {"a": terms}

    @torch.no_grad()
    def sure(self, network: nn.Module, patches: Tensor) -> SurePseudoLabels:
        """The pseudo-labels of weak views (B, 1, z, y, x)."""
        return SurePseudoLabels.of(network(patches), self.threshold)

    def on_strong(self, step: Step, view: str, i: SurePseudoLabels, j: SurePseudoLabels) -> Tensor:
        """The loss on a strong view of the unlabelled patches, some of them mixed, with their pseudo-labels."""
        outside, inside = step.batch["unlabelled"][view], step.batch["unlabelled_j"][view]
        draw = partial(draw_masks, num_boxes=1, generator=step.generator, probability=self.cut_mix)
        masks = step.draw(partial(draw, shape=outside.shape[2:]), len(outside)).to(outside.device)
        seen = step.networks["a"](cut_mix(outside, inside, masks))
        return i.mixed(j, masks).teach(seen, step.pseudo_loss)

    @torch.no_grad()
    def mix(self, networks: Mapping[str, nn.Module], x_i: Tensor, x_j: Tensor, generator: torch.Generator) -> Mix:
        """CutMix of patches, with their pseudo-labels."""
        masks = draw_masks(len(x_i), x_i.shape[2:], num_boxes=1, generator=generator).to(x_i.device)
        y_i, y_j = (pseudo_labels(networks["a"](x)) for x in (x_i, x_j))
        return Mix(cut_mix(x_i, x_j, masks), {"a": cut_mix(y_i, y_j, masks)})
