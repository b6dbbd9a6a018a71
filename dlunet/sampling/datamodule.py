"""The data module: a batch of each of the method's streams for every step."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import lightning
import torch
import torchio as tio
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from dlunet.errors import UserError
from dlunet.methods import Batch, Method, Stream
from dlunet.preparation import PreparedCase, PreparedDataset
from dlunet.sampling.ahead import Ahead
from dlunet.sampling.augmentation import Augmentation
from dlunet.sampling.patches import PatchDataset, draw_order
from dlunet.sampling.sampler import ClassBalancedSampler
from dlunet.sampling.workers import worker_count

#: The view that every training uses.
WEAK = "weak"

logger = logging.getLogger(__name__)


class PatchDataModule(lightning.LightningDataModule):
    """Yields, for each step, a batch of every :class:`dlunet.methods.Stream` that the method uses in the current epoch.

    Patches depend only on the seed, the epoch and the step, not on the number of workers: a resumed run gets the same
    patches as an uninterrupted one. Each process of a distributed run has its own cases.

    Args:
        prepared: The prepared cases and their plan.
        method: The method; its streams define the patches of a step and which of them must come from different cases.
        augmentation: Applied to every training crop.
        batch_size: Patches per step and stream, times the stream's own factor.
        steps_per_epoch: Steps per epoch.
        foreground_fraction: See :class:`ClassBalancedSampler`.
        num_workers: Processes that read and augment ahead of the steps; 0: the main process does so; None: see
            :func:`worker_count`.
        seed: Random seed.
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
    ) -> None:
        super().__init__()
        self.prepared = prepared
        self.method = method
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.num_workers = worker_count(num_workers)
        self.seed = seed
        self.sampler = ClassBalancedSampler(prepared.plan.patch_size, foreground_fraction)
        self._ahead = Ahead(self._batches, steps_per_epoch, self.num_workers)

    def check_cases(self, processes: int) -> None:
        """Check that every process gets enough cases, and log how unlabelled patches are cropped.

        Raises:
            UserError: There are too few cases.
        """
        for name, stream in self.method.streams.items():
            kind = "labelled" if stream.labelled else "unlabelled"
            self._check_count(kind, len(getattr(self.prepared, kind)), len(self._group(name)) * processes)
        if self.method.needs_unlabelled:
            uniform = sum(not case.ranges for case in self.prepared.unlabelled)
            if uniform:
                logger.info(
                    "%d of %d unlabelled cases have no pseudo-labels: their patches are cropped at random, "
                    "not class-balanced",
                    uniform,
                    len(self.prepared.unlabelled),
                )

    def train_dataloader(self) -> CombinedLoader:
        """The batches (:data:`dlunet.methods.Batch`) of the current epoch."""
        assert self.trainer is not None
        return CombinedLoader(self._ahead.epoch(self.trainer.current_epoch), mode="min_size")

    def val_dataloader(self) -> DataLoader:
        """Complete prepared cases, one at a time."""
        return DataLoader(_WholeCases(self.prepared.validation), batch_size=None)

    def teardown(self, stage: str | None = None) -> None:
        """End the workers."""
        self._ahead.close()

    def _batches(self, epoch: int, steps: range) -> Iterator[Batch]:
        wanted = self.method.streams_in(epoch)
        with torch.random.fork_rng(devices=[]):  # PyTorch's loaders draw a seed, which is not used here
            loaders = [iter(self._loader(name, stream, epoch, steps)) for name, stream in wanted.items()]
        for batches in zip(*loaders, strict=True):
            subjects_by_stream = zip(wanted.items(), batches, strict=True)
            yield {name: self._views(subjects, stream) for (name, stream), subjects in subjects_by_stream}

    @staticmethod
    def _views(subjects: Any, stream: Stream) -> dict[str, torch.Tensor]:
        views = {view: subjects["image" if view == WEAK else view][tio.DATA] for view in stream.views}
        return {**views, "label": subjects["label"][tio.DATA][:, 0]} if stream.labelled else views

    def _group(self, name: str) -> list[str]:
        """A stream and the streams that must differ from it in their cases, in the method's order."""
        streams = self.method.streams
        first = streams[name].other_than or name
        return [other for other, stream in streams.items() if first in (other, stream.other_than)]

    def _loader(self, name: str, stream: Stream, epoch: int, steps: range) -> tio.SubjectsLoader:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        cases = self.prepared.labelled if stream.labelled else self.prepared.unlabelled
        names, group = list(self.method.streams), self._group(name)
        batch_size = self.batch_size * stream.times
        order = draw_order(
            len(cases),
            items=self.steps_per_epoch * batch_size,
            seed=[self.seed, names.index(group[0]), epoch],
            rank=rank,
            world_size=world_size,
            shift=group.index(name) * (len(cases) // (len(group) * world_size)),
        )
        dataset = PatchDataset(
            cases,
            order,
            self.sampler,
            self.augmentation,
            self.prepared.plan.spacing,
            with_labels=stream.labelled,
            views=[view for view in stream.views if view != WEAK],
            seed=[self.seed, names.index(name), epoch, rank],
        )
        # An item is a finished patch, already in random order: one sample per item, no shuffling.
        queue = tio.Queue(
            dataset,
            max_length=batch_size,
            samples_per_volume=1,
            sampler=self.sampler,
            subject_sampler=[step * batch_size + k for step in steps for k in range(batch_size)],  # type: ignore[arg-type]
            shuffle_subjects=False,
            shuffle_patches=False,
        )
        return tio.SubjectsLoader(queue, batch_size=batch_size)

    @staticmethod
    def _check_count(kind: str, found: int, needed: int) -> None:
        if found < needed:
            otherwise = "" if kind == "labelled" else ", or train with method=supervised"
            raise UserError(
                f"found {found} {kind} cases; expected at least {needed} for this method and number of processes; "
                f"add cases, or use fewer devices{otherwise}"
            )


class _WholeCases(torch.utils.data.Dataset):
    """Prepared cases with labels: image (1, z, y, x) float32 and label (z, y, x)."""

    def __init__(self, cases: tuple[PreparedCase, ...]) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        case = self.cases[index]
        assert case.label is not None
        image = torch.from_numpy(case.image.astype("float32")) * case.quantisation_step
        return {"image": image, "label": torch.from_numpy(case.label.copy())}
