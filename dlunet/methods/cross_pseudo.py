"""Cross pseudo supervision with CutMix: two networks teach each other (DLUNet, Fig. 1, eq. 1–5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlunet.losses import downsample
from dlunet.methods.base import Batch, SegmentationLoss
from dlunet.methods.cutmix import cut_mix, draw_masks
from dlunet.methods.side_by_side import side_by_side


class CrossPseudo:
    """Each network learns from the labels, and from the other's pseudo-labels on a mixed unlabelled patch.

    Args:
        unlabelled_weight: Weight of the two pseudo-supervised terms, from the published code; it has no ramp-up.
        boxes: CutMix boxes a patch.
        supervised_epochs: Epochs in which both networks see labels only, before they teach each other. The paper has
            none; a short run needs some, since networks that know nothing teach each other nothing.
    """

    num_networks = 2
    needs_unlabelled = True

    def __init__(self, unlabelled_weight: float = 0.8, boxes: int = 3, supervised_epochs: int = 0) -> None:
        self.unlabelled_weight = unlabelled_weight
        self.boxes = boxes
        self.supervised_epochs = supervised_epochs

    def uses_unlabelled(self, epoch: int) -> bool:
        """Whether the supervised epochs are over."""
        return epoch >= self.supervised_epochs

    def losses(
        self,
        networks: Sequence[nn.Module],
        batch: Batch,
        loss: SegmentationLoss,
        epoch: int,
        generator: torch.Generator | None = None,
    ) -> list[dict[str, Tensor]]:
        """The labelled terms of both networks and, once the supervised epochs are over, the unlabelled ones."""
        a, b = networks
        image, label = batch["image"], batch["label"]

        def from_labels(network: nn.Module, name: str) -> dict[str, Tensor]:
            return {f"labelled_{name}": loss(network(image), label)}

        if not self.uses_unlabelled(epoch):
            return side_by_side(from_labels, (a, b), "ab", device=image.device)
        x_i, x_j = batch["unlabelled_i"], batch["unlabelled_j"]
        masks = draw_masks(len(x_i), x_i.shape[2:], self.boxes, generator).to(x_i.device)
        x_ij = cut_mix(x_i, x_j, masks)

        def teach(network: nn.Module) -> list[Tensor]:
            return mixed_pseudo_labels(network, x_i, x_j, masks)

        def learn(network: nn.Module, name: str, pseudo_labels: list[Tensor]) -> dict[str, Tensor]:
            labelled = from_labels(network, name)
            return {**labelled, f"unlabelled_{name}": self.unlabelled_weight * loss(network(x_ij), pseudo_labels)}

        by_a, by_b = side_by_side(teach, (a, b), device=image.device)
        return side_by_side(learn, (a, b), "ab", (by_b, by_a), device=image.device)


@torch.no_grad()
def mixed_pseudo_labels(network: nn.Module, x_i: Tensor, x_j: Tensor, masks: Tensor) -> list[Tensor]:
    """What a network sees in both patches, cut and mixed like the patches themselves (eq. 2 and 3).

    Args:
        network: The network that teaches; it gets no gradient.
        x_i: Patches (B, 1, z, y, x) outside the boxes.
        x_j: Patches (B, 1, z, y, x) inside the boxes, from other cases.
        masks: Booleans (B, z, y, x).

    Returns:
        Labels (B, …) a decoder level, finest first, each from that level's own output.
    """
    outputs = network(torch.cat([x_i, x_j]))
    levels = [outputs] if isinstance(outputs, Tensor) else outputs
    labels = [level.argmax(1).chunk(2) for level in levels]
    return [cut_mix(y_i, y_j, downsample(masks, y_i.shape[1:])) for y_i, y_j in labels]
