"""What a training method is: it declares its networks and patches, and says how they become a loss.

The frame, :class:`dlunet.training.SegmentationModule`, builds, optimises, averages, logs, validates and checkpoints.
A method knows no Lightning, and reads like the paper's equations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from dlunet.losses import DeepSupervisionLoss
from dlunet.methods.side_by_side import side_by_side

Result = TypeVar("Result")

#: A step's patches by stream: views (B, 1, z, y, x) by name, and of a labelled stream the ``label`` (B, z, y, x).
Batch = Mapping[str, Mapping[str, Tensor]]

#: For each trained network the weighted terms of its loss by name.
Terms = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Trained:
    """A network that the optimiser changes.

    Attributes:
        config: The node of the composed config that describes it. A method whose networks are of different kinds adds
            one of its own, see ``conf/method/cross_teaching.yaml``.
    """

    config: str = "network"


@dataclass(frozen=True)
class Averaged:
    """A network that is the exponential moving average of a trained one, and gets no gradient.

    Attributes:
        of: The trained network's role.
        decay: How much of the average is kept in a step.
    """

    of: str
    decay: float = 0.99


@dataclass(frozen=True)
class Fixed:
    """A network that was trained before, and stays as it is.

    Attributes:
        checkpoint: Where it is loaded from. It must know the labels of the dataset.
    """

    checkpoint: str


@dataclass(frozen=True)
class Stream:
    """Patches that a step needs.

    Attributes:
        labelled: Whether they are cut from labelled cases, and come with their labels.
        views: Names of the views of a patch. All share their geometry, so that a pseudo-label made of one fits the
            others voxel by voxel. ``weak`` is the patch as it is augmented in any training; what begins with
            ``strong`` is made of the weak view by the stronger transforms of ``conf/augmentation``.
        other_than: A stream before this one, whose sample k never comes from the same case as this one's.
        times: How many patches for one of the batch size.
    """

    labelled: bool
    views: tuple[str, ...] = ("weak",)
    other_than: str | None = None
    times: int = 1


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Steps done.
        epoch: Epochs done.
        fraction: The part of the run that is done, 0 to 1.
    """

    step: int
    epoch: int
    fraction: float


@dataclass(frozen=True)
class Step:
    """What a method sees of one step.

    Attributes:
        networks: By role.
        batch: By stream, see :data:`Batch`.
        loss: For true labels.
        pseudo_loss: For pseudo-labels.
        progress: How far the run is.
        generator: The source of the step's own draws.
    """

    networks: Mapping[str, nn.Module]
    batch: Batch
    loss: DeepSupervisionLoss
    pseudo_loss: DeepSupervisionLoss
    progress: Progress
    generator: torch.Generator

    def from_labels(self, network: nn.Module) -> dict[str, Tensor]:
        """The term that every method has: the loss on the labelled patches."""
        labelled = self.batch["labelled"]
        return {"labelled": self.loss(network(labelled["weak"]), labelled["label"])}

    def each(self, function: Callable[..., Result], roles: Sequence[str], *arguments: Sequence) -> dict[str, Result]:
        """Call ``function(network, …)`` for some networks, at the same time where that is faster.

        Args:
            function: What a network does; it must not touch another's parameters.
            roles: The networks.
            arguments: Further arguments, an entry a network.
        """
        networks = [self.networks[role] for role in roles]
        device = next(iter(self.batch["labelled"].values())).device
        return dict(zip(roles, side_by_side(function, networks, *arguments, device=device), strict=True))


class Method(nn.Module):
    """A way to train. A module, so that a method's own state is moved and checkpointed.

    Attributes:
        networks: What each network is, by role.
        predicts: The role that is validated and used for prediction; of several roles, the mean of their logits is.
        streams: The patches of a step by name; ``labelled`` is always there.
        supervised_epochs: Epochs in which only labelled streams are drawn. The paper has none; a short run needs some,
            since networks that know nothing teach nothing.

    Args:
        supervised_epochs: As above.
    """

    networks: Mapping[str, Trained | Averaged | Fixed]
    predicts: str | Sequence[str]
    streams: Mapping[str, Stream]

    def __init__(self, supervised_epochs: int = 0) -> None:
        super().__init__()
        self.supervised_epochs = supervised_epochs

    @property
    def trained(self) -> dict[str, Trained]:
        """The roles that the optimiser changes."""
        return {role: kind for role, kind in self.networks.items() if isinstance(kind, Trained)}

    @property
    def averaged(self) -> dict[str, Averaged]:
        """The roles that are averages of others."""
        return {role: kind for role, kind in self.networks.items() if isinstance(kind, Averaged)}

    @property
    def fixed(self) -> dict[str, Fixed]:
        """The roles that nothing changes."""
        return {role: kind for role, kind in self.networks.items() if isinstance(kind, Fixed)}

    @property
    def predicting(self) -> list[str]:
        """The roles that predict."""
        return [self.predicts] if isinstance(self.predicts, str) else list(self.predicts)

    @property
    def needs_unlabelled(self) -> bool:
        """Whether a run must have unlabelled cases."""
        return any(not stream.labelled for stream in self.streams.values())

    def streams_in(self, epoch: int) -> dict[str, Stream]:
        """The streams of an epoch's steps."""
        supervised = epoch < self.supervised_epochs
        return {name: stream for name, stream in self.streams.items() if stream.labelled or not supervised}

    def setup(self, num_classes: int) -> None:
        """Called once before training, for state that depends on the number of classes, background included."""

    def after_step(self, step: Step) -> None:
        """Called after the optimiser's step, once the averages are up to date."""

    def losses(self, step: Step) -> Terms:
        """For each trained network the weighted terms of its loss by name; their sum is what it minimises.

        A network's terms depend on its own parameters alone.
        """
        raise NotImplementedError
