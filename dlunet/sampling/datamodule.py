"""The data module: a batch of each of the method's streams for every step."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import lightning
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from dlunet.errors import UserError
from dlunet.methods import Batch, Method, Stream
from dlunet.preparation import PreparedCase, PreparedDataset
from dlunet.sampling.ahead import Ahead
from dlunet.sampling.augmentation import Augmentation
from dlunet.sampling.sampler import ClassBalancedSampler
from dlunet.sampling.streams import Streams, apart, cases_of
from dlunet.sampling.workers import worker_count

logger = logging.getLogger(__name__)


class PatchDataModule(lightning.LightningDataModule):
    """Yields, for each step, a batch of every :class:`dlunet.methods.Stream` that the method uses in the current epoch.

    Patches depend only on the seed, the epoch and the step, not on the number of workers: a resumed run gets the same
    patches as an uninterrupted one. The processes of a distributed run share the patches of a step, see
    :class:`dlunet.sampling.streams.Streams`.

    Args:
        prepared: The prepared cases and their plan.
        method: The method; its streams define the patches of a step and which of them must come from different cases.
        augmentation: Applied to every training crop.
        batch_size: Patches per batch, process and stream, times the stream's own factor.
        steps_per_epoch: Steps per epoch.
        foreground_fraction: See :class:`ClassBalancedSampler`.
        num_workers: Processes that read and augment ahead of the steps; 0: the main process does so; None: see
            :func:`worker_count`.
        seed: Random seed.
        accumulate_grad_batches: Batches per step.
        repeat: Whether every epoch has the patches of the first one.
    """

    def __init__(
        self,
        prepared: PreparedDataset,
        method: Method,
        augmentation: Augmentation,
        batch_size: int = 1,
        steps_per_epoch: int = 250,
        foreground_fraction: float = 1 / 3,
        num_workers: int | None = 0,
        seed: int = 0,
        accumulate_grad_batches: int = 1,
        repeat: bool = False,
    ) -> None:
        super().__init__()
        self.prepared = prepared
        self.method = method
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.num_workers = worker_count(num_workers)
        self.seed = seed
        self.accumulate_grad_batches = accumulate_grad_batches
        self.repeat = repeat
        self.sampler = ClassBalancedSampler(prepared.plan.patch_size, foreground_fraction)
        self._ahead: Ahead | None = None

    @property
    def waited(self) -> float:
        """Seconds that the steps of this process have waited for their batches."""
        return self._ahead.waited if self._ahead is not None else 0.0

    def check_cases(self) -> None:
        """Check that there are enough cases, and log how unlabelled patches are cropped.

        Raises:
            UserError: There are too few cases.
        """
        streams = self.method.streams
        check_counts(streams, {stream.kind: len(cases_of(self.prepared, stream)) for stream in streams.values()})
        if self.method.needs_unlabelled:
            uniform = sum(not case.ranges for case in self.prepared.unlabelled)
            if uniform:
                logger.info(
                    "%d of %d unlabelled cases have no pseudo-labels, or none of any class: their patches are cropped "
                    "at random, not class-balanced",
                    uniform,
                    len(self.prepared.unlabelled),
                )

    def train_dataloader(self) -> CombinedLoader:
        """The batches (:data:`dlunet.methods.Batch`) of the current epoch; of a resumed one, those that are left."""
        assert self.trainer is not None
        if self._ahead is None:
            self._ahead = Ahead(self._streams.batches, self.steps_per_epoch, self.num_workers)
        done = self.trainer.global_step % self.steps_per_epoch
        return CombinedLoader(self._ahead.epoch(self.trainer.current_epoch, done), mode="min_size")

    def patches_of(self, epoch: int, step: int) -> Batch:
        """The patches of a step of an epoch, made by this process, whatever the workers do."""
        return next(self._streams.batches(epoch, range(step, step + 1)))

    def cases_of(self, epoch: int, step: int) -> dict[str, list[str]]:
        """The names of the cases in this process's patches of a step of an epoch, by stream."""
        return self._streams.cases(epoch, step)

    @property
    def awaited_cases(self) -> dict[str, list[str]]:
        """The cases of the step whose patches are awaited, or come next, by stream."""
        return {} if self._ahead is None else self.cases_of(*divmod(self._ahead.next_step, self.steps_per_epoch))

    @property
    def exit_codes(self) -> list[int]:
        """See :class:`dlunet.sampling.ahead.Ahead`."""
        return [] if self._ahead is None else self._ahead.exit_codes

    def val_dataloader(self) -> DataLoader:
        """Complete prepared cases, one at a time. Several processes share them, in order, if each gets at least one."""
        assert self.trainer is not None
        cases, rank, count = self.prepared.validation, self.trainer.global_rank, self.trainer.world_size
        if len(cases) >= count:
            cases = cases[len(cases) * rank // count : len(cases) * (rank + 1) // count]
        return DataLoader(_WholeCases(cases), batch_size=None)

    def teardown(self, stage: str | None = None) -> None:
        """End the workers."""
        if self._ahead is not None:
            self._ahead.close()

    @property
    def _streams(self) -> Streams:
        assert self.trainer is not None
        return Streams(
            self.prepared,
            self.method,
            self.augmentation,
            self.sampler,
            self.batch_size,
            self.steps_per_epoch,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.accumulate_grad_batches,
            self.repeat,
        )


def check_counts(streams: Mapping[str, Stream], found: Mapping[str, int]) -> None:
    """Check that there are enough cases for streams that must differ in their cases.

    Args:
        streams: The streams of a method by name.
        found: The number of cases by their kind, see :attr:`dlunet.methods.Stream.kind`.

    Raises:
        UserError: There are too few cases.
    """
    for name, stream in streams.items():
        kind, needed = stream.kind, len(apart(streams, name))
        if found[kind] < needed:
            otherwise = "" if kind == "labelled" else ", or train with method=supervised"
            raise UserError(
                f"found {found[kind]} {kind} cases; expected at least {needed} for this method; add cases{otherwise}"
            )


class _WholeCases(torch.utils.data.Dataset):
    """Prepared cases with labels: image (1, z, y, x) float32 and label (z, y, x)."""

    def __init__(self, cases: tuple[PreparedCase, ...]) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        case = self.cases[index]
        image, label = case.image, case.label
        assert label is not None
        return {
            "image": torch.from_numpy(image.astype("float32")) * case.quantisation_step,
            "label": torch.from_numpy(label.copy()),
        }
