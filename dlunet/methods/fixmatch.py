"""FixMatch: confident predictions on a weak view label a strong view (Sohn et al. 2020, arXiv 2001.07685)."""

from __future__ import annotations

from collections.abc import Mapping

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
        cut_mix_probability: That the strong view of a patch is mixed.
        supervised_epochs: See :class:`Method`.
    """

    networks = {"a": Trained()}  # noqa: RUF012
    predicts = "a"
    views: tuple[str, ...] = ("strong",)

    def __init__(
        self,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        cut_mix_probability: float = 0.5,
        supervised_epochs: int = 0,
    ) -> None:
        super().__init__(supervised_epochs)
        views = ("weak", *self.views)
        self.streams = {"labelled": Stream(labelled=True), "unlabelled": Stream(labelled=False, views=views)}
        if cut_mix_probability:
            self.streams["unlabelled_j"] = Stream(labelled=False, views=views, other_than="unlabelled")
        self.threshold = threshold
        self.unlabelled_weight = unlabelled_weight
        self.cut_mix_probability = cut_mix_probability

    def losses(self, step: Step) -> Terms:
        """The labelled term and, after the supervised epochs, that of the confident voxels."""
        network = step.networks["a"]
        terms = step.from_labels(network)
        if "unlabelled" in step.batch:
            with torch.no_grad():
                outputs = network(step.batch["unlabelled"]["weak"])
            (strong,) = self.on_strong(step, SurePseudoLabels.of(outputs, self.threshold))
            terms["unlabelled"] = self.unlabelled_weight * strong
        return {"a": terms}

    def on_strong(self, step: Step, pseudo: SurePseudoLabels) -> list[Tensor]:
        """The loss on each strong view of the unlabelled patches, some of them mixed, with their pseudo-labels."""
        network, unlabelled, other = step.networks["a"], step.batch["unlabelled"], step.batch.get("unlabelled_j")
        if other is None:
            return [pseudo.teach(network(unlabelled[view]), step.pseudo_loss) for view in self.views]
        with torch.no_grad():
            of_other = SurePseudoLabels.of(network(other["weak"]), self.threshold)
        terms = []
        for view in self.views:
            masks = self._draw_masks(step, unlabelled[view])
            seen = network(cut_mix(unlabelled[view], other[view], masks))
            terms.append(pseudo.mixed(of_other, masks).teach(seen, step.pseudo_loss))
        return terms

    def _draw_masks(self, step: Step, patches: Tensor) -> Tensor:
        def draw(batch: int) -> Tensor:
            return draw_masks(batch, patches.shape[2:], 1, step.generator, self.cut_mix_probability)

        return step.draw(draw, len(patches)).to(patches.device)

    @torch.no_grad()
    def mix(
        self, networks: Mapping[str, nn.Module], x_i: Tensor, x_j: Tensor, generator: torch.Generator
    ) -> Mix | None:
        """CutMix of patches, with their pseudo-labels."""
        if not self.cut_mix_probability:
            return None
        masks = draw_masks(len(x_i), x_i.shape[2:], num_boxes=1, generator=generator).to(x_i.device)
        y_i, y_j = (pseudo_labels(networks["a"](x)) for x in (x_i, x_j))
        return Mix(cut_mix(x_i, x_j, masks), {"a": cut_mix(y_i, y_j, masks)})
