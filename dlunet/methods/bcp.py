"""Bidirectional copy-paste between labelled and unlabelled patches (Bai et al. 2023, arXiv 2305.00673)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dlunet.methods.base import Averaged, Method, Step, Stream, Terms, Trained
from dlunet.methods.cutmix import cut_mix, place_box
from dlunet.methods.outputs import pseudo_labels


class BidirectionalCopyPaste(Method):
    """The student segments labelled patches with an unlabelled box in them, and unlabelled ones with a labelled box.

    A box with β times the edges of the patch is cut from one patch and pasted into the other, in both directions (eq. 1
    to 3). Labels are mixed likewise, with those of the moving-average teacher on unlabelled voxels (eq. 4 and 5). In
    each mixed patch, the loss on labelled voxels has weight 1 and the loss on unlabelled voxels weight α (eq. 6 and 7).
    The student predicts. During the supervised epochs, two labelled patches are mixed: the paper's pre-training.
    The paper keeps the largest connected component of each class in the pseudo-labels, which presumes complete organs;
    a patch here may contain disconnected parts of one, so nothing is removed.

    Args:
        unlabelled_weight: α.
        box: β, the edges of the box as a fraction of those of the patch.
        decay: Decay of the teacher's moving average per step.
        supervised_epochs: See :class:`Method`.
    """

    predicts = "student"
    streams = {  # noqa: RUF012
        "labelled": Stream(labelled=True),
        "labelled_j": Stream(labelled=True, other_than="labelled"),
        "unlabelled_p": Stream(labelled=False),
        "unlabelled_q": Stream(labelled=False, other_than="unlabelled_p"),
    }

    def __init__(
        self, unlabelled_weight: float = 0.5, box: float = 2 / 3, decay: float = 0.99, supervised_epochs: int = 0
    ) -> None:
        super().__init__(supervised_epochs)
        self.networks = {"student": Trained(), "teacher": Averaged("student", decay)}
        self.unlabelled_weight = unlabelled_weight
        self.box = box

    def losses(self, step: Step) -> Terms:
        """The loss on labelled voxels and, after the supervised epochs, that on unlabelled voxels."""
        i, j = step.batch["labelled"], step.batch["labelled_j"]
        student = step.networks["student"]
        draw = partial(self.draw_boxes, shape=i["weak"].shape[2:], generator=step.generator)
        box = step.draw(draw, len(i["weak"])).to(i["weak"].device)
        if "unlabelled_p" not in step.batch:
            mixed = cut_mix(i["weak"], j["weak"], box)
            return {"student": {"labelled": step.loss(student(mixed), cut_mix(i["label"], j["label"], box))}}
        p, q = step.batch["unlabelled_p"]["weak"], step.batch["unlabelled_q"]["weak"]
        y_p, y_q = self._by_teacher(step.networks["teacher"], p, q)
        inward, label_in = cut_mix(p, j["weak"], box), cut_mix(y_p, j["label"].long(), box)
        outward, label_out = cut_mix(i["weak"], q, box), cut_mix(i["label"].long(), y_q, box)
        seen_in, seen_out = student(inward), student(outward)
        inside, outside = box.to(p.dtype), (~box).to(p.dtype)
        return {
            "student": {
                "labelled": step.loss(seen_in, label_in, weight=inside)
                + step.loss(seen_out, label_out, weight=outside),
                "unlabelled": self.unlabelled_weight
                * (
                    step.pseudo_loss(seen_in, label_in, weight=outside)
                    + step.pseudo_loss(seen_out, label_out, weight=inside)
                ),
            }
        }

    def draw_boxes(self, batch: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Masks (B, z, y, x), true in a box at a random position for each sample."""
        masks = torch.zeros((batch, *shape), dtype=torch.bool)
        edges = [round(size * self.box) for size in shape]
        for mask in masks:
            mask[place_box(shape, edges, generator)] = True
        return masks

    @staticmethod
    @torch.no_grad()
    def _by_teacher(teacher: nn.Module, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        y_p, y_q = pseudo_labels(teacher(torch.cat([p, q]))).chunk(2)
        return y_p, y_q
