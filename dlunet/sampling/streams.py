"""Makes the batches of the steps: one of each of the method's streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchio as tio

from dlunet.methods import Batch, Method, Stream
from dlunet.preparation import PreparedCase, PreparedDataset
from dlunet.sampling.augmentation import Augmentation
from dlunet.sampling.patches import PatchDataset, draw_order
from dlunet.sampling.sampler import ClassBalancedSampler

#: The view that every training uses.
WEAK = "weak"


@dataclass(frozen=True, eq=False)
class Streams:
    """The streams of a run in one of its processes.

    A step has ``accumulate`` batches, each of which the processes share, those of the first process first. Its patches
    depend on the seed, the epoch and their place in the step alone: more processes with smaller batches get the same.

    Attributes:
        prepared: The prepared cases and their plan.
        method: The method, which declares the streams.
        augmentation: Applied to every patch.
        sampler: Draws the centres of patches.
        batch_size: Patches per batch, process and stream, times the stream's own factor.
        steps_per_epoch: Steps per epoch.
        seed: Random seed.
        rank: Rank of the process.
        world_size: Number of processes.
        accumulate: Batches per step.
        repeat: Whether every epoch has the patches of the first one.
    """

    prepared: PreparedDataset
    method: Method
    augmentation: Augmentation
    sampler: ClassBalancedSampler
    batch_size: int
    steps_per_epoch: int
    seed: int
    rank: int
    world_size: int
    accumulate: int = 1
    repeat: bool = False

    def batches(self, epoch: int, steps: range) -> Iterator[Batch]:
        """Yield the patches of some steps of an epoch, those of all their batches together."""
        wanted = self.method.streams_in(epoch)
        with torch.random.fork_rng(devices=[]):  # PyTorch's loaders draw a seed, which is not used here
            loaders = [iter(self._loader(name, stream, epoch, steps)) for name, stream in wanted.items()]
        for batches in zip(*loaders, strict=True):
            subjects_by_stream = zip(wanted.items(), batches, strict=True)
            yield {name: _views(subjects, stream) for (name, stream), subjects in subjects_by_stream}

    def cases(self, epoch: int, step: int) -> dict[str, list[str]]:
        """The names of the cases of a step of an epoch, by stream."""
        found = {}
        for name, stream in self.method.streams_in(epoch).items():
            cases, order = cases_of(self.prepared, stream), self._order(name, stream, epoch)
            items = self._own_items(range(step, step + 1), self.batch_size * stream.times)
            found[name] = [cases[order[item]].name for item in items]
        return found

    def _order(self, name: str, stream: Stream, epoch: int) -> list[int]:
        """The case of each item of an epoch."""
        names, group = list(self.method.streams), apart(self.method.streams, name)
        num_cases = len(cases_of(self.prepared, stream))
        return draw_order(
            num_cases,
            items=self.steps_per_epoch * self.accumulate * self.world_size * self.batch_size * stream.times,
            seed=[self.seed, names.index(group[0]), self._seed_of(epoch)],
            shift=group.index(name) * (num_cases // len(group)),
        )

    def _loader(self, name: str, stream: Stream, epoch: int, steps: range) -> tio.SubjectsLoader:
        cases = cases_of(self.prepared, stream)
        names = list(self.method.streams)
        batch_size = self.batch_size * stream.times
        dataset = PatchDataset(
            cases,
            self._order(name, stream, epoch),
            self.sampler,
            self.augmentation,
            self.prepared.plan.spacing,
            with_labels=stream.has_label,
            views=[view for view in stream.views if view != WEAK],
            seed=[self.seed, names.index(name), self._seed_of(epoch), 0],  # the last one was a rank in earlier versions
        )
        # An item is a finished patch, already in random order: one sample per item, no shuffling.
        queue = tio.Queue(
            dataset,
            max_length=self.accumulate * batch_size,
            samples_per_volume=1,
            sampler=self.sampler,
            subject_sampler=self._own_items(steps, batch_size),  # type: ignore[arg-type]
            shuffle_subjects=False,
            shuffle_patches=False,
        )
        return tio.SubjectsLoader(queue, batch_size=self.accumulate * batch_size)

    def _seed_of(self, epoch: int) -> int:
        return 0 if self.repeat else epoch

    def _own_items(self, steps: range, batch_size: int) -> list[int]:
        """The items of this process, among those of all processes."""
        batches = (step * self.accumulate + batch for step in steps for batch in range(self.accumulate))
        starts = ((batch * self.world_size + self.rank) * batch_size for batch in batches)
        return [start + k for start in starts for k in range(batch_size)]


def cases_of(prepared: PreparedDataset, stream: Stream) -> tuple[PreparedCase, ...]:
    """The cases from which the patches of a stream are cut."""
    if stream.labelled:
        return prepared.labelled
    return tuple(case for case in prepared.unlabelled if case.has_target or not stream.pseudo_labelled)


def apart(streams: Mapping[str, Stream], name: str) -> list[str]:
    """A stream and the streams that must differ from it in their cases, in the method's order."""

    def first(stream: str) -> str:
        other = streams[stream].other_than
        return stream if other is None else first(other)

    return [other for other in streams if first(other) == first(name)]


def _views(subjects: Any, stream: Stream) -> dict[str, torch.Tensor]:
    views = {view: subjects["image" if view == WEAK else view][tio.DATA] for view in stream.views}
    return {**views, "label": subjects["label"][tio.DATA][:, 0]} if stream.has_label else views
