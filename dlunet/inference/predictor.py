"""Segments a CT with a trained network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlunet.errors import UserError
from dlunet.inference.engines import Engine, make_engine
from dlunet.inference.postprocessing import checked_steps, postprocess
from dlunet.inference.resample_to_input import labels_on_grid
from dlunet.inference.sliding_window import FLIPPED_AXES, Flips, stream_logits, tile_starts
from dlunet.networks import Bundle, check_logits
from dlunet.networks.bundle import MIRRORED
from dlunet.preparation import prepare_image
from dlunet.volumes import Volume

logger = logging.getLogger(__name__)


class Predictor:
    """Segments CTs on their own grid.

    Args:
        bundle: The network with its plan and labels.
        tile_step: Distance between tiles as a fraction of the patch.
        flips: Test-time flips, see :func:`dlunet.inference.predict_logits`.
        engine: The engine that runs the network; by default PyTorch on the CPU.
        postprocess: Postprocessing steps, from :data:`dlunet.inference.postprocessing.STEPS`.

    Raises:
        UserError: A postprocessing step is unknown.
    """

    def __init__(
        self,
        bundle: Bundle,
        tile_step: float = 0.5,
        flips: Flips = "none",
        engine: Engine | None = None,
        postprocess: tuple[str, ...] = (),
    ) -> None:
        self.bundle = bundle
        self.tile_step = tile_step
        self.flips = flips
        self.engine = engine or make_engine(bundle, "torch")
        self.postprocess = checked_steps(postprocess)
        if flips != "none" and bundle.description.get(MIRRORED) is False:
            logger.warning(
                "warning: flips=%s: this network was trained without mirrored CTs, and segments mirrored copies "
                "wrongly; expected flips=none, or a network trained with augmentation=nnunet",
                flips,
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the labels depend on, apart from the CT."""
        return {
            "weights": self.bundle.digest,
            "labels": self.bundle.labels.to_dict(),
            "plan": self.bundle.plan.to_dict(),
            "step": self.tile_step,  # the key in folders started with version 0.1
            "flips": self.flips,
            "engine": self.engine.name,
            "postprocess": list(self.postprocess),
        }

    def segment(self, volume: Volume) -> np.ndarray:
        """Labels (z, y, x), uint8, on the grid of a CT in canonical orientation."""
        return self.label(self.prepare(volume), volume.array.shape)

    def prepare(self, volume: Volume) -> Tensor:
        """The network's input for a CT: (1, z, y, x), normalised, at the plan's spacing."""
        return torch.from_numpy(prepare_image(volume.array, volume.spacing, self.bundle.plan))

    def label(self, prepared: Tensor, shape: Sequence[int], after_tile: Callable[[], None] | None = None) -> np.ndarray:
        """Labels on a CT's grid of ``shape`` (z, y, x), from the output of :meth:`prepare`."""

        def network(tiles: Tensor) -> Tensor:
            logits = self.engine(tiles)
            check_logits(self.engine.name, logits, tiles, self.bundle.labels.num_classes)
            if logits.sum(dtype=torch.float32).isnan():  # much faster than to look at each
                raise UserError(
                    f"{self.engine.name}: found NaN among its logits; expected numbers; try precision=float32"
                )
            if after_tile:
                for _ in tiles:
                    after_tile()
            return logits

        on_device, patch = prepared.to(self.engine.device), self.bundle.plan.patch_size
        slabs = stream_logits(network, on_device, patch, self.tile_step, self.flips, self.engine.tiles_at_once)
        return postprocess(labels_on_grid(slabs, prepared.shape[1:], shape), self.postprocess)

    def count_tiles(self, prepared: Tensor) -> int:
        """The number of tiles for a prepared CT, flips included."""
        patch = self.bundle.plan.patch_size
        shape = [max(size, least) for size, least in zip(prepared.shape[1:], patch, strict=True)]
        return prod(map(len, tile_starts(shape, patch, self.tile_step))) * len(FLIPPED_AXES[self.flips])
