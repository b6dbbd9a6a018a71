"""UniMatch: a weak view teaches two strong views and perturbed features (Yang et al. 2023, arXiv 2208.09910)."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dlunet.errors import UserError
from dlunet.methods.base import Step, Terms
from dlunet.methods.confidence import SurePseudoLabels
from dlunet.methods.fixmatch import FixMatch


class TwoParts(Protocol):
    """A network with separate encoder and decoder, such as :class:`dlunet.networks.UNet`."""

    def encode(self, x: Tensor) -> list[Tensor]:
        """The features (B, C, …) of a patch."""
        ...

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """The logits of these features."""
        ...


class UniMatch(FixMatch):
    """FixMatch with two strong views and a feature perturbation that agree with the weak view where it is confident.

    The unlabelled loss (eq. 5) is the mean over voxels of 1(max p ≥ τ)·(λ·H(p, p_fp) + μ/2·(H(p, p_s1) + H(p, p_s2))),
    with p_fp decoded from the weak view's features after channel dropout, and p_s1, p_s2 from two strong views, each
    mixed by CutMix on its own. Here λ and μ are each half of the unlabelled weight, as in the paper.

    Args:
        dropout: The fraction of channels dropped in every encoder stage.
        settings: See :class:`FixMatch`; ``unlabelled_weight`` is λ + μ.
    """

    views = ("strong_1", "strong_2")

    def __init__(self, dropout: float = 0.5, **settings: Any) -> None:
        super().__init__(**settings)
        self.dropout = dropout

    def losses(self, step: Step) -> Terms:
        """The labelled term and, after the supervised epochs, those of the perturbed features and the strong views."""
        network = step.networks["a"]
        terms = step.from_labels(network)
        if "unlabelled" in step.batch:
            parts = _in_two_parts(network)
            features = parts.encode(step.batch["unlabelled"]["weak"])
            with torch.no_grad():
                pseudo = SurePseudoLabels.of(parts.decode(features), self.threshold)
            perturbed = parts.decode([self._perturbed(level, step) for level in features])
            strong = self.on_strong(step, pseudo)
            half = self.unlabelled_weight / 2
            terms["features"] = half * pseudo.teach(perturbed, step.pseudo_loss)
            terms["strong"] = half * (strong[0] + strong[1]) / 2
        return {"a": terms}

    def _perturbed(self, features: Tensor, step: Step) -> Tensor:
        """Channel dropout drawn from the step's generator, so that a resumed run repeats it."""

        def draw(batch: int) -> Tensor:
            return torch.rand((batch, features.shape[1], 1, 1, 1), generator=step.generator)

        kept = step.draw(draw, len(features)) >= self.dropout
        return features * kept.to(features) / (1 - self.dropout)


def _in_two_parts(network: nn.Module) -> TwoParts:
    if not (hasattr(network, "encode") and hasattr(network, "decode")):
        raise UserError(
            f"method: UniMatch perturbs the features between encoder and decoder; found {type(network).__name__}, "
            "which has no encode and decode; choose network=light or network=plain, or another method"
        )
    return cast(TwoParts, network)
