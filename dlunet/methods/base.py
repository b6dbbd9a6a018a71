"""The interface of training methods: a method declares its networks and patches and computes the losses.

The training module, :class:`dlunet.training.SegmentationModule`, builds, optimises, averages, logs, validates and
checkpoints. A method does not depend on Lightning and reads like the paper's equations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from dlunet.distributed import own_part, process_count
from dlunet.losses import DeepSupervisionLoss
from dlunet.methods.side_by_side import side_by_side
from dlunet.networks import runs_compiled

Result = TypeVar("Result")

#: The patches of a step by stream: views (B, 1, z, y, x) by name, and ``label`` (B, z, y, x) if the stream has labels.
Batch = Mapping[str, Mapping[str, Tensor]]

#: The weighted loss terms by name, for each trained network.
Terms = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Trained:
    """A network that is trained by the optimiser.

    Attributes:
        config: The node of the composed config that describes it. A method with different kinds of network adds its
            own node, see ``conf/method/cross_teaching.yaml``.
    """

    config: str = "network"


@dataclass(frozen=True)
class Averaged:
    """The exponential moving average of a trained network; it gets no gradient.

    Attributes:
        of: Role of the trained network.
        decay: The fraction of the average that is kept in each step.
    """

    of: str
    decay: float = 0.99


@dataclass(frozen=True)
class Fixed:
    """A pre-trained network whose weights stay fixed.

    Attributes:
        checkpoint: The checkpoint to load. It must have the labels of the dataset.
    """

    checkpoint: str


@dataclass(frozen=True)
class Stream:
    """A stream of patches for the training steps.

    Attributes:
        labelled: Whether the patches are cut from labelled cases and come with their labels.
        views: Names of the views of a patch. All share one geometry, so that a pseudo-label from one view matches the
            others voxel by voxel. ``weak`` is the patch with the augmentation of every training; views whose names
            begin with ``strong`` are made from the weak view by the stronger transforms of ``conf/augmentation``.
        other_than: A stream declared before this one whose sample k never comes from the same case as sample k here.
        times: Factor on the batch size.
        pseudo_labelled: Whether the patches are cut from those unlabelled cases that have a pseudo-label, see
            ``data.pseudo_labels``, and come with it as their ``label``.
    """

    labelled: bool
    views: tuple[str, ...] = ("weak",)
    other_than: str | None = None
    times: int = 1
    pseudo_labelled: bool = False

    @property
    def has_label(self) -> bool:
        """Whether the patches come with labels, true or pseudo."""
        return self.labelled or self.pseudo_labelled

    @property
    def kind(self) -> str:
        """The kind of cases that the patches are cut from."""
        return "labelled" if self.labelled else "pseudo-labelled" if self.pseudo_labelled else "unlabelled"


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        step: Completed steps.
        epoch: Completed epochs.
        fraction: The completed fraction of the run, 0 to 1.
    """

    step: int
    epoch: int
    fraction: float


def with_averages(roles: Sequence[str], decay: float) -> tuple[dict[str, Trained | Averaged | Fixed], list[str]]:
    """Trained networks with their moving averages, if there is a decay, and the roles that teach and predict.

    Args:
        roles: The roles of the trained networks.
        decay: See :class:`Averaged`; 0: no averages, the trained networks themselves teach and predict.
    """
    trained, averaged = {role: Trained() for role in roles}, {}
    if decay:
        averaged = {f"average_{role}": Averaged(role, decay) for role in roles}
    return {**trained, **averaged}, list(averaged or trained)


def are_terms(found: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether these are scalar tensors by name, at least one of which can be minimised."""
    if not isinstance(found, Mapping):
        return False
    scalars = [term for term in found.values() if isinstance(term, Tensor) and not term.dim()]
    return len(scalars) == len(found) and any(term.requires_grad for term in scalars)


@dataclass(frozen=True)
class Step:
    """The input of a method for one step.

    Attributes:
        networks: The networks by role.
        batch: The patches by stream, see :data:`Batch`.
        loss: The loss for true labels.
        pseudo_loss: The loss for pseudo-labels.
        progress: The progress of the run.
        generator: The random generator of the step, the same in all processes; see :meth:`draw`.
        backward: Computes the gradients of a loss; None: they are computed after :meth:`Method.losses`, from its terms.
        learnt: The roles of networks whose gradients :meth:`learn` has computed.
    """

    networks: Mapping[str, nn.Module]
    batch: Batch
    loss: DeepSupervisionLoss
    pseudo_loss: DeepSupervisionLoss
    progress: Progress
    generator: torch.Generator
    backward: Callable[[Tensor], None] | None = None
    learnt: set[str] = field(default_factory=set)

    @property
    def num_patches(self) -> int:
        """The number of patches of the step."""
        return sum(len(next(iter(stream.values()))) for stream in self.batch.values())

    def from_labels(self, network: nn.Module) -> dict[str, Tensor]:
        """The loss on the labelled patches, a term of every method."""
        labelled = self.batch["labelled"]
        return {"labelled": self.loss(network(labelled["weak"]), labelled["label"])}

    def draw(self, make: Callable[[int], Tensor], batch: int) -> Tensor:
        """Random numbers (B, …) for the patches of this process, of those that are drawn for all processes.

        Args:
            make: Called with a number of patches, draws for them from :attr:`generator`.
            batch: B, the number of patches of this process.
        """
        return own_part(make(batch * process_count()))

    def each(self, function: Callable[..., Result], roles: Sequence[str], *arguments: Sequence) -> dict[str, Result]:
        """Call ``function(network, …)`` for several networks, in parallel where that is faster.

        Args:
            function: The function; it must not touch the parameters of another network.
            roles: The roles of the networks.
            arguments: Further arguments, each a sequence with one entry per network.
        """
        networks = [self.networks[role] for role in roles]
        device = next(iter(self.batch["labelled"].values())).device
        # Compiled code fills the cores with the patches of one network, if there are several; that takes less memory.
        one_by_one = self.num_patches > 1 and all(map(runs_compiled, networks))
        # Processes exchange the sums of losses in the order in which they compute them.
        one_by_one = one_by_one or process_count() > 1
        run = map if device.type != "cpu" or one_by_one else side_by_side
        return dict(zip(roles, run(function, networks, *arguments), strict=True))

    def learn(self, function: Callable[..., dict[str, Tensor]], roles: Sequence[str], *arguments: Sequence) -> Terms:
        """The terms of several networks, with the gradients of each network computed as soon as its terms are.

        The activations of one network are freed before those of the next one are computed, where they do not run in
        parallel. Arguments as for :meth:`each`; ``function`` returns the terms of one network.
        """

        def learn_one(network: nn.Module, role: str, *given: object) -> dict[str, Tensor]:
            terms = function(network, *given)
            if self.backward is None or not are_terms(terms):
                return terms
            self.backward(torch.stack(list(terms.values())).sum())
            self.learnt.add(role)
            return {name: value.detach() for name, value in terms.items()}

        return self.each(learn_one, roles, roles, *arguments)


@dataclass(frozen=True)
class Mix:
    """A batch of mixed unlabelled patches with what teaches on it, for a picture of how a method mixes.

    Attributes:
        patches: (B, 1, z, y, x).
        pseudo_labels: Labels (B, z, y, x) by the role of the network that teaches.
    """

    patches: Tensor
    pseudo_labels: Mapping[str, Tensor]


class Method(nn.Module):
    """A training method. It is a module so that its own state is moved to the device and checkpointed.

    Attributes:
        networks: The kind of each network, by role.
        predicts: The role that is validated and used for prediction. With several roles, the mean of their logits is.
        streams: The streams of patches by name; ``labelled`` is always present.
        supervised_epochs: Initial epochs with labelled streams only. The paper has none; a short run needs some, since
            untrained networks give no useful pseudo-labels.

    Args:
        supervised_epochs: See above.
    """

    networks: Mapping[str, Trained | Averaged | Fixed]
    predicts: str | Sequence[str]
    streams: Mapping[str, Stream]

    def __init__(self, supervised_epochs: int = 0) -> None:
        super().__init__()
        self.supervised_epochs = supervised_epochs

    @property
    def trained(self) -> dict[str, Trained]:
        """The roles that the optimiser trains."""
        return {role: kind for role, kind in self.networks.items() if isinstance(kind, Trained)}

    @property
    def averaged(self) -> dict[str, Averaged]:
        """The roles that are moving averages of others."""
        return {role: kind for role, kind in self.networks.items() if isinstance(kind, Averaged)}

    @property
    def fixed(self) -> dict[str, Fixed]:
        """The roles whose weights stay fixed."""
        return {role: kind for role, kind in self.networks.items() if isinstance(kind, Fixed)}

    @property
    def predicting(self) -> list[str]:
        """The roles that predict."""
        return [self.predicts] if isinstance(self.predicts, str) else list(self.predicts)

    @property
    def needs_unlabelled(self) -> bool:
        """Whether a run requires unlabelled cases."""
        return any(not stream.labelled for stream in self.streams.values())

    @property
    def needs_pseudo_labels(self) -> bool:
        """Whether pseudo-labels are targets, so that a run requires cases that have one."""
        return any(stream.pseudo_labelled for stream in self.streams.values())

    def streams_in(self, epoch: int) -> dict[str, Stream]:
        """The streams of an epoch."""
        supervised = epoch < self.supervised_epochs
        return {name: stream for name, stream in self.streams.items() if stream.labelled or not supervised}

    def setup(self, num_classes: int) -> None:
        """Called once before training, for state that depends on the number of classes, background included."""

    def after_step(self, step: Step) -> None:
        """Called after the optimiser step and the update of the moving averages."""

    def mix(
        self, networks: Mapping[str, nn.Module], x_i: Tensor, x_j: Tensor, generator: torch.Generator
    ) -> Mix | None:
        """An example of how the method mixes unlabelled patches, for dashboards; None if it does not mix them.

        Args:
            networks: The networks by role, in evaluation mode.
            x_i: Unlabelled patches (B, 1, z, y, x).
            x_j: As many patches of other cases.
            generator: The random generator.
        """
        return None

    def losses(self, step: Step) -> Terms:
        """The weighted loss terms by name, for each trained network, which minimises their sum.

        The terms of a network depend on its own parameters only. Terms from :meth:`Step.learn` are minimised already.
        """
        raise NotImplementedError
