"""Make a plan from a fingerprint by the published rules of nnU-Net v2 for its ``3d_fullres`` configuration.

Source: Isensee et al., nnU-Net, Nature Methods 2021, supplementary note 2, with the constants of nnU-Net v2's planner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlunet.preparation.fingerprint import Fingerprint
from dlunet.preparation.resampling import ANISOTROPY_THRESHOLD, target_shape

#: The edge of a cube with as many voxels as the first guess of a patch.
FIRST_EDGE = 256
#: No axis is halved below this many voxels.
SMALLEST_EDGE = 4
#: Features of the first stage, doubled from stage to stage, and their maximum.
FIRST_FEATURES, MOST_FEATURES = 32, 320
CONVOLUTIONS_A_STAGE = 2
#: Number of values in the feature maps of one patch that fill this much GPU memory with two patches per step.
REFERENCE_VALUES, REFERENCE_GB = 560e6, 8

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Topology:
    """A patch and the network that fits it.

    Attributes:
        patch_size: Voxels (z, y, x).
        strides: (z, y, x) of each downsampling, one fewer than there are stages.
        kernel_sizes: (z, y, x) of each stage.
        features: Of each stage.
    """

    patch_size: Shape
    strides: tuple[Shape, ...]
    kernel_sizes: tuple[Shape, ...]
    features: tuple[int, ...]


def plan_spacing(fingerprint: Fingerprint) -> tuple[float, float, float]:
    """The voxel size (z, y, x) in mm that cases are resampled to: the median.

    Along an axis that is much coarser and has far fewer voxels than the others, the tenth percentile is used, because
    cases with thinner slices would lose too much detail.
    """
    target = np.median(fingerprint.spacings, axis=0)
    size = np.median(fingerprint.shapes, axis=0)
    coarsest = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarsest]
    finer, larger = max(target[others]), min(size[others])
    if target[coarsest] > ANISOTROPY_THRESHOLD * finer and size[coarsest] * ANISOTROPY_THRESHOLD < larger:
        thin = np.percentile([spacing[coarsest] for spacing in fingerprint.spacings], 10)
        target[coarsest] = max(thin, finer + 1e-5)
    z, y, x = (round(float(mm), 6) for mm in target)
    return z, y, x


def plan_topology(
    fingerprint: Fingerprint, spacing: Sequence[float], num_classes: int, memory_gb: float, patch: Shape | None = None
) -> Topology:
    """The largest patch whose network can be trained within a memory budget, and that network.

    The budget is nnU-Net's, for its own network and two patches per step; two light networks with one patch each need
    less.

    Args:
        fingerprint: Of the labelled cases.
        spacing: The target voxel size (z, y, x) in mm.
        num_classes: Network outputs.
        memory_gb: GPU memory in GB.
        patch: A fixed patch (z, y, x), used regardless of the budget.
    """
    if patch is not None:
        return topology(spacing, patch)
    shapes = [target_shape(n, mm, spacing) for n, mm in zip(fingerprint.shapes, fingerprint.spacings, strict=True)]
    median = np.median(shapes, axis=0)
    cube = FIRST_EDGE * math.prod(spacing) ** (1 / 3)
    found = topology(spacing, [min(round(cube / mm), n) for mm, n in zip(spacing, median, strict=True)])
    while feature_values(found, num_classes) > REFERENCE_VALUES / REFERENCE_GB * memory_gb:
        smaller = _reduced(found, spacing, median)
        if min(smaller.patch_size) < 1:
            break  # nothing fits the budget: use the smallest patch
        found = smaller
    return found


def topology(spacing: Sequence[float], patch: Sequence[float]) -> Topology:
    """Halve axes while they are long enough, the finest first, and round the patch up to a size that can be halved.

    A kernel has size 1 along an axis until voxels there are less than twice as large as along the finest axis.
    """
    mm, size = list(map(float, spacing)), list(map(float, patch))
    kernel, halvings = [1, 1, 1], [0, 0, 0]
    strides: list[Shape] = []
    kernels: list[Shape] = []
    while True:
        long = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_EDGE]
        halved = [axis for axis in long if mm[axis] < 2 * min(mm[other] for other in long)]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * SMALLEST_EDGE):
            break
        kernel = [3 if k == 3 or mm[axis] < 2 * min(mm) else 1 for axis, k in enumerate(kernel)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        for axis in halved:
            halvings[axis] += 1
            mm[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
        z, y, x = (2 if axis in halved else 1 for axis in range(3))
        strides.append((z, y, x))
    z, y, x = (math.ceil(n / 2**k) * 2**k for n, k in zip(patch, halvings, strict=True))
    features = tuple(min(MOST_FEATURES, FIRST_FEATURES * 2**stage) for stage in range(len(strides) + 1))
    return Topology((z, y, x), tuple(strides), (*kernels, (3, 3, 3)), features)


def feature_values(planned: Topology, num_classes: int) -> int:
    """The number of values in all feature maps of nnU-Net's network for one patch, its measure of memory."""
    sizes = [planned.patch_size]
    for stride in planned.strides:
        z, y, x = (n // step for n, step in zip(sizes[-1], stride, strict=True))
        sizes.append((z, y, x))
    voxels = [math.prod(size) for size in sizes]
    encoder = sum(CONVOLUTIONS_A_STAGE * f * n for f, n in zip(planned.features, voxels, strict=True))
    # A decoder stage: its convolutions and the transposed convolution before them; finally, the class head.
    decoder = sum((CONVOLUTIONS_A_STAGE + 1) * f * n for f, n in zip(planned.features[:-1], voxels[:-1], strict=True))
    return encoder + decoder + num_classes * voxels[0]


def _reduced(found: Topology, spacing: Sequence[float], median: np.ndarray) -> Topology:
    """A patch reduced along the axis that covers most of a case, by the smallest step that can be halved as often."""
    patch = list(found.patch_size)
    axis = max(range(3), key=lambda k: (patch[k] / median[k], k))
    step = math.prod(stride[axis] for stride in found.strides)
    shorter = [n - step if k == axis else n for k, n in enumerate(patch)]
    # Fewer halvings may fit the shorter patch; then a smaller step is enough.
    step = math.prod(stride[axis] for stride in topology(spacing, shorter).strides)
    patch[axis] -= step
    return topology(spacing, patch)
