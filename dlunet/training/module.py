"""The LightningModule: optimiser, precision, gradient clipping, logging and checkpoint contents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dlunet.distributed import average_in_place, copy_from_first, disconnect, mean, process_count
from dlunet.errors import UserError
from dlunet.inference import predict_logits
from dlunet.labels import LabelSet
from dlunet.losses import DeepSupervisionLoss, loss_at
from dlunet.methods import Batch, Method, Progress, Step, Terms, check_terms, check_untrained
from dlunet.native import keep_freed_memory
from dlunet.networks import check_logits, describe, mean_logits
from dlunet.networks.bundle import KEY, WEIGHTS, read_description
from dlunet.preparation import Plan
from dlunet.training.case_dice import CaseDice
from dlunet.training.schedules import Schedule


class Wishes(NamedTuple):
    """What is to be done after a step, besides the next one.

    Attributes:
        stop: Whether the run is to end.
        save: Whether a checkpoint is to be written.
    """

    stop: bool = False
    save: bool = False


class SegmentationModule(lightning.LightningModule):
    """Trains the networks of a method, with manual optimisation.

    Args:
        networks: The trained and the fixed networks of the method, by role.
        network_description: Description of the network that predicts, see :func:`dlunet.networks.describe`.
        method: Computes the losses of a batch.
        loss: The loss of one decoder level, or a schedule of such losses.
        pseudo_loss: The same for pseudo-labels.
        optimizer: Creates an optimiser from parameters.
        schedule: Factor of the base learning rate over the run.
        plan: The plan of the prepared cases.
        labels: The classes.
        gradient_clip: Maximum gradient norm, for each network separately.
        seed: Seed of the method's random numbers.
        accumulate: Batches whose gradients make one step.
        mirrored: Whether patches are mirrored; None if unknown. It is only written to checkpoints.

    Raises:
        UserError: The method or a loss has parameters of its own, which would not be trained.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        network_description: dict[str, Any],
        method: Method,
        loss: nn.Module,
        pseudo_loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        schedule: Schedule,
        plan: Plan,
        labels: LabelSet,
        gradient_clip: float = 12.0,
        seed: int = 0,
        accumulate: int = 1,
        mirrored: bool | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.networks = nn.ModuleDict(networks)
        for role, average in method.averaged.items():
            network = AveragedModel(networks[average.of], multi_avg_fn=partial(_average, average.decay))
            self.networks[role] = network.requires_grad_(False)
        for role in method.fixed:
            networks[role].requires_grad_(False)
        for trained_or_fixed in networks.values():
            trained_or_fixed.register_forward_hook(partial(_check_logits, labels.num_classes))
        self.network_description = network_description
        self.method = method
        method.setup(labels.num_classes)
        self.loss = loss
        self.pseudo_loss = pseudo_loss
        for part in ("method", "loss", "pseudo_loss"):
            check_untrained(part, getattr(self, part))
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.plan = plan
        self.labels = labels
        self.gradient_clip = gradient_clip
        self.seed = seed
        self.accumulate = accumulate
        self.mirrored = mirrored
        # What this process wishes after a step, and what all do: see dlunet.training.checkpoint.LastCheckpoint.
        self.asked: Callable[[int], Wishes] = _no_wishes
        self.agreed = Wishes()
        # The error about a step, of which it has the patches, progress and losses: see dlunet.training.faults.Faults.
        self.fault: Callable[[SegmentationModule, Batch, Progress, dict[str, Tensor]], UserError] = _fault
        self._of_step: tuple[Batch, Progress, dict[str, Tensor]] = {}, Progress(0, 0, 0.0), {}
        self.dice = CaseDice(labels.num_classes)

    def train(self, mode: bool = True) -> SegmentationModule:
        """Set training mode; fixed networks stay in evaluation mode."""
        super().train(mode)
        for role in self.method.fixed:
            self.networks[role].eval()
        return self

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimiser for all networks: mixed precision updates its loss scale once per step, after all gradients."""
        weights = [weight for network in self._trained for weight in network.parameters()]
        # On a GPU, gradients of fused optimisers cannot be clipped in mixed precision.
        chosen = getattr(self.make_optimizer, "keywords", {}).keys() & {"foreach", "fused", "differentiable"}
        can_fuse = "fused" in inspect.signature(self.make_optimizer).parameters and not chosen
        is_fused = can_fuse and self.device.type == "cpu"
        if self._scaler is not None and getattr(self.make_optimizer, "keywords", {}).get("fused"):
            raise UserError(
                "optimizer.algorithm.fused: found true with mixed precision, where scaled gradients would be clipped; "
                "leave it out"
            )
        optimizer = self.make_optimizer(weights, fused=True) if is_fused else self.make_optimizer(weights)
        scheduler = LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "name": "train/lr"}}

    def on_fit_start(self) -> None:
        """Begin with the same networks in all processes; on a CPU, each step takes the memory of the one before."""
        copy_from_first(self.state_dict().values())
        if self.device.type == "cpu":
            keep_freed_memory()

    def on_fit_end(self) -> None:
        """Disconnect from the other processes: the first one may score for hours."""
        disconnect()

    def on_train_start(self) -> None:
        """Recompute the learning rate of a resumed run: it may have more epochs, or its checkpoint no schedule."""
        if self.global_step:
            self._scheduler.last_epoch = self.global_step - 1
            self._scheduler.step()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise the sum of the method's losses, averaged over the batches that make one step.

        Raises:
            UserError: A loss is not finite.
        """
        optimizer = cast(LightningOptimizer, self.optimizers())
        progress = self._progress(batch_idx)
        optimizer.zero_grad()
        step, values = self.gradients(batch, progress, self.manual_backward)
        average_in_place(self._shared())
        self._of_step = batch, progress, values
        optimizer.step()
        self._scheduler.step()
        self._average()
        self.method.after_step(step)
        logged, self.agreed = self._of_all_processes(torch.stack(list(values.values())), self.asked(progress.step))
        self.log_dict({f"train/{name}": value for name, value in zip(values, logged, strict=True)}, batch_size=1)
        loss = logged.sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=1)
        if not logged.isfinite().all():  # in mixed precision, gradients that overflow leave the losses finite
            raise self.fault(self, *self._of_step)

    def gradients(
        self, batch: Batch, progress: Progress, backward: Callable[[Tensor], None]
    ) -> tuple[Step, dict[str, Tensor]]:
        """Compute the gradients of a step.

        Args:
            batch: The patches of the step.
            progress: Which step it is.
            backward: Computes the gradients of a loss.

        Returns:
            The step, of its last batch, and its loss terms by name.
        """
        generator = self._generator(progress.step)
        values: dict[str, Tensor] = {}
        for part in _batches(batch, self.accumulate):
            step = Step(
                networks=dict(self.networks.items()),
                batch=part,
                loss=DeepSupervisionLoss(loss_at(self.loss, progress.epoch)),
                pseudo_loss=DeepSupervisionLoss(loss_at(self.pseudo_loss, progress.epoch)),
                progress=progress,
                generator=generator,
                backward=lambda loss: backward(loss / self.accumulate),
            )
            terms = self.method.losses(step)
            check_terms(self.method, step, terms)
            self._learn_rest(step, terms)
            for role, named in terms.items():
                for name, value in named.items():
                    values[f"{name}_{role}"] = values.get(f"{name}_{role}", 0) + value.detach() / self.accumulate
        return step, values

    def _shared(self) -> Iterator[Tensor]:
        """What the processes average in a step: gradients, and statistics such as those of batch normalisation."""
        for network in self._trained:
            yield from (weight.grad for weight in network.parameters() if weight.grad is not None)
            yield from (buffer for buffer in network.buffers() if buffer.is_floating_point())

    def _of_all_processes(self, values: Tensor, wishes: Wishes) -> tuple[Tensor, Wishes]:
        """The means of values, and which wishes any process has."""
        if process_count() == 1:
            return values, wishes
        shared = mean(torch.cat([values, values.new_tensor(list(map(float, wishes)))]))
        return shared[: len(values)], Wishes(*(share > 0 for share in shared[len(values) :].tolist()))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norm of each network's gradients and clip them, after mixed precision has unscaled them.

        Raises:
            UserError: Gradients are not finite. Mixed precision takes no step then, and halves its scale until they
                are; below 1, they overflow by themselves.
        """
        norms = {}
        for role in self.method.trained:
            norms[role] = nn.utils.clip_grad_norm_(self.networks[role].parameters(), self.gradient_clip)
            self.log(f"train/gradient_norm_{role}", norms[role], batch_size=1)
        are_finite = bool(torch.stack(list(norms.values())).isfinite().all())
        if not are_finite and (self._scaler is None or self._scaler.get_scale() < 1):
            raise self.fault(self, *self._of_step)

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Check at the end of an epoch, before it is validated and saved, that training has not diverged.

        Raises:
            UserError: It has: weights are not finite.
        """
        if not self.trainer.is_last_batch:
            return
        weights = (weight for network in self._trained for weight in network.parameters())
        if not all(weight.isfinite().all() for weight in weights):
            raise UserError(
                f"training diverged in epoch {self.current_epoch}: found weights that are not finite; "
                "train anew, with another output=FOLDER, with a lower optimizer.algorithm.lr"
            )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Segment a complete prepared case with the predicting network or networks; returns the classes (z, y, x)."""
        network = partial(mean_logits, [self.networks[role] for role in self.method.predicting])
        prediction = predict_logits(network, batch["image"], self.plan.patch_size).argmax(0)
        self.dice.update(prediction, batch["label"])
        return prediction

    def on_validation_epoch_end(self) -> None:
        """Log the DSC of each class over the cases of all processes that contain it, and the mean over classes."""
        scores = self.dice.compute()
        self.dice.reset()
        by_organ = {f"val/dsc/{organ.abbreviation}": score for organ, score in zip(self.labels, scores, strict=True)}
        self.log_dict(by_organ, sync_dist=True)
        self.log("val/dsc", scores.nanmean(), prog_bar=True, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description needed for prediction to the checkpoint."""
        roles = self.method.predicting
        # AveragedModel wraps its network in an attribute ``module``.
        prefixes = [f"networks.{role}.{'module.' * (role in self.method.averaged)}" for role in roles]
        described = describe(self.network_description, self.plan, self.labels, self.mirrored)
        checkpoint[KEY] = {**described, WEIGHTS: prefixes if len(roles) > 1 else prefixes[0]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the plan of the prepared cases is that of the run so far.

        Raises:
            UserError: It is not: labelled cases have changed.
        """
        before, _ = read_description(checkpoint[KEY])
        if not before.is_close(self.plan):
            raise UserError(
                f"the labelled cases have changed since this run began: found the plan {self.plan}, before {before}; "
                "one run would be trained with two versions of them; restore them, or train anew with another "
                "output=FOLDER"
            )

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        """Scales the losses, in mixed precision of 16 bits."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    @property
    def _trained(self) -> list[nn.Module]:
        return [self.networks[role] for role in self.method.trained]

    def _average(self) -> None:
        for role, average in self.method.averaged.items():
            cast(AveragedModel, self.networks[role]).update_parameters(self.networks[average.of])

    def _learn_rest(self, step: Step, terms: Terms) -> None:
        """Compute the gradients of the networks that the method has only returned terms of."""
        rest = {role: named for role, named in terms.items() if role not in step.learnt}
        step.learn(lambda _, named: named, list(rest), list(rest.values()))

    @property
    def _scheduler(self) -> LambdaLR:
        return cast(LambdaLR, self.lr_schedulers())

    def _learning_rate_factor(self, step: int) -> float:
        assert self.trainer.max_epochs is not None
        # Infinite until the data is loaded; the factor of the first step, requested before that, is still at epoch 0.
        steps = self.trainer.num_training_batches
        return self.schedule(step // steps + step % steps / steps, self.trainer.max_epochs)

    def _progress(self, batch_idx: int) -> Progress:
        assert self.trainer.max_epochs is not None
        steps = int(self.trainer.num_training_batches)
        step = self.current_epoch * steps + batch_idx
        return Progress(step, self.current_epoch, step / (self.trainer.max_epochs * steps))

    def _generator(self, step: int) -> torch.Generator:
        """A generator seeded by the step alone, so that a resumed run repeats its random numbers."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + step) * 4096)


def _average(decay: float, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
    """Update a moving average. PyTorch's own function cannot be sent to the processes of a training."""
    get_ema_multi_avg_fn(decay)(averaged, current, count)


def _no_wishes(step: int) -> Wishes:
    return Wishes()


def _fault(module: SegmentationModule, batch: Batch, progress: Progress, values: dict[str, Tensor]) -> UserError:
    return UserError(f"step {progress.step}: gradients are not finite")


def _batches(patches: Batch, count: int) -> list[Batch]:
    """The patches of a step, split into batches."""
    parts = {stream: {view: values.chunk(count) for view, values in views.items()} for stream, views in patches.items()}
    return [
        {stream: {view: values[number] for view, values in views.items()} for stream, views in parts.items()}
        for number in range(count)
    ]


def _check_logits(
    num_classes: int, network: nn.Module, arguments: tuple[Tensor, ...], output: Tensor | Sequence[Tensor]
) -> None:
    """A forward hook: a loss would not notice logits of channels without a class."""
    logits = output if isinstance(output, Tensor) else output[0]
    check_logits(f"network {type(network).__name__}", logits, arguments[0], num_classes)
