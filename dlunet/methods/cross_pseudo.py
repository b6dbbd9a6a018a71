"""Cross pseudo supervision with CutMix: two networks teach each other (DLUNet, Fig. 1, eq. 1–5)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from dlunet.losses import downsample, largest_class
from dlunet.methods.base import Method, Mix, Step, Stream, Terms, with_averages
from dlunet.methods.cutmix import cut_mix, draw_masks
from dlunet.methods.outputs import in_one_pass
from dlunet.methods.ramps import sigmoid_ramp


class CrossPseudo(Method):
    """Each network learns from the labels and from the other network's pseudo-labels on a mixed unlabelled patch.

    Args:
        unlabelled_weight: Weight of the two pseudo-supervised terms, from the published code.
        num_boxes: CutMix boxes per patch.
        supervised_epochs: See :class:`Method`.
        decay: With a decay, the moving averages of both networks teach, and that of ``a`` predicts; 0: as in the paper,
            the networks themselves do.
        ramp: The fraction of the run over which the weight rises, see :func:`sigmoid_ramp`; 0: as in the paper, none.
        strong: Whether the networks learn from strong views of the patches that they are taught on.
    """

    def __init__(
        self,
        unlabelled_weight: float = 0.8,
        num_boxes: int = 3,
        supervised_epochs: int = 0,
        decay: float = 0.0,
        ramp: float = 0.0,
        strong: bool = False,
    ) -> None:
        super().__init__(supervised_epochs)
        self.networks, self.teachers = with_averages("ab", decay)
        self.predicts = self.teachers[0]
        self.learnt_view = "strong" if strong else "weak"
        views = ("weak", "strong") if strong else ("weak",)
        self.streams = {
            "labelled": Stream(labelled=True),
            "unlabelled_i": Stream(labelled=False, views=views),
            "unlabelled_j": Stream(labelled=False, views=views, other_than="unlabelled_i"),
        }
        self.unlabelled_weight = unlabelled_weight
        self.num_boxes = num_boxes
        self.ramp = ramp

    def losses(self, step: Step) -> Terms:
        """The labelled terms of both networks and, after the supervised epochs, the unlabelled ones."""
        if "unlabelled_i" not in step.batch:
            return step.learn(step.from_labels, "ab")
        labelled, i, j = (step.batch[name] for name in self.streams)
        masks = step.draw(partial(self._draw_masks, i["weak"], generator=step.generator), len(i["weak"]))
        x_ij = cut_mix(i[self.learnt_view], j[self.learnt_view], masks)
        weight = self.unlabelled_weight * sigmoid_ramp(step.progress.fraction, self.ramp)

        def teach(network: nn.Module) -> list[Tensor]:
            return mixed_pseudo_labels(network, i["weak"], j["weak"], masks)

        def learn(network: nn.Module, pseudo_labels: list[Tensor]) -> dict[str, Tensor]:
            on_labelled, on_mixed = in_one_pass(network, labelled["weak"], x_ij)
            return {
                "labelled": step.loss(on_labelled, labelled["label"]),
                "unlabelled": weight * step.pseudo_loss(on_mixed, pseudo_labels),
            }

        by = step.each(teach, self.teachers)
        return step.learn(learn, "ab", [by[teacher] for teacher in reversed(self.teachers)])

    def mix(self, networks: Mapping[str, nn.Module], x_i: Tensor, x_j: Tensor, generator: torch.Generator) -> Mix:
        """CutMix of patches, with the finest pseudo-labels of both teachers."""
        masks = self._draw_masks(x_i, len(x_i), generator)
        by = {role: mixed_pseudo_labels(networks[role], x_i, x_j, masks)[0] for role in self.teachers}
        return Mix(cut_mix(x_i, x_j, masks), by)

    def _draw_masks(self, patches: Tensor, batch: int, generator: torch.Generator) -> Tensor:
        return draw_masks(batch, patches.shape[2:], self.num_boxes, generator).to(patches.device)


@torch.no_grad()
def mixed_pseudo_labels(network: nn.Module, x_i: Tensor, x_j: Tensor, masks: Tensor) -> list[Tensor]:
    """The pseudo-labels of both patches, mixed like the patches themselves (eq. 2 and 3).

    Args:
        network: The teaching network; it gets no gradient.
        x_i: Patches (B, 1, z, y, x) used outside the boxes.
        x_j: Patches (B, 1, z, y, x) used inside the boxes, from other cases.
        masks: Booleans (B, z, y, x).

    Returns:
        Labels (B, …), one tensor per decoder level, finest first, each from the output of that level.
    """
    outputs = network(torch.cat([x_i, x_j]))
    levels = [outputs] if isinstance(outputs, Tensor) else outputs
    labels = [largest_class(level).chunk(2) for level in levels]
    return [cut_mix(y_i, y_j, downsample(masks, y_i.shape[1:])) for y_i, y_j in labels]
