"""Plans compared with those of nnU-Net's own planner, recorded by benchmarks/planning_against_nnunet.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from dlunet.networks import PlainUNet
from dlunet.preparation import Fingerprint, Intensity
from dlunet.preparation.planning import feature_values, plan_spacing, plan_topology, topology

PLANS = json.loads((Path(__file__).parents[2] / "benchmarks/results/planning_against_nnunet.json").read_text())["plans"]


def fingerprint(shapes, spacings):
    return Fingerprint(tuple(map(tuple, shapes)), tuple(map(tuple, spacings)), Intensity(0, 1, 0, 1))


@pytest.mark.parametrize("case", PLANS)
def test_the_plan_is_nnunet_s(case):
    found, expected = fingerprint(case["shapes"], case["spacings"]), case["plan"]
    spacing = plan_spacing(found)
    chosen = plan_topology(found, spacing, case["num_classes"], case["memory_gb"])
    assert spacing == pytest.approx(expected["spacing"])
    assert list(chosen.patch_size) == expected["patch_size"]
    assert [list(stride) for stride in chosen.strides] == expected["strides"]
    assert [list(size) for size in chosen.kernel_sizes] == expected["kernel_sizes"]
    assert list(chosen.features) == expected["features"]


def test_thick_slices_may_not_become_thinner_than_the_others_are():
    found = fingerprint([(12, 200, 200)] * 10, [(1.0, 2.0, 2.0)] * 3 + [(8.0, 2.0, 2.0)] * 7)
    assert plan_spacing(found) == pytest.approx((2.00001, 2.0, 2.0))


def test_more_memory_never_gives_a_smaller_patch_and_the_budget_is_kept():
    found = fingerprint([(200, 512, 512)], [(2.5, 0.8, 0.8)])
    chosen = [plan_topology(found, (2.5, 0.8, 0.8), 14, gb) for gb in (1, 2, 4, 8, 16, 32)]
    assert (np.diff([np.prod(plan.patch_size) for plan in chosen]) >= 0).all()
    for plan, gb in zip(chosen, (1, 2, 4, 8, 16, 32), strict=True):
        assert feature_values(plan, 14) <= 70e6 * gb
        steps = np.prod(plan.strides, axis=0)
        assert (np.array(plan.patch_size) % steps == 0).all()


def test_a_given_patch_is_kept():
    found = fingerprint([(200, 512, 512)], [(2.5, 0.8, 0.8)])
    assert plan_topology(found, (2.5, 1.5, 1.5), 14, 8, (56, 160, 160)).patch_size == (56, 160, 160)


def test_a_budget_that_nothing_fits_ends():
    found = fingerprint([(200, 512, 512)], [(1.0, 1.0, 1.0)])
    smallest = plan_topology(found, (1.0, 1.0, 1.0), 2, 1e-9)
    assert min(smallest.patch_size) >= 1


def test_the_values_are_those_of_the_network_s_feature_maps():
    """Counted by hooks on the convolutions of nnU-Net's network, without deep supervision heads."""
    planned = topology((2.0, 1.0, 1.0), (16, 32, 32))
    network = PlainUNet(
        num_classes=5,
        features=planned.features,
        strides=planned.strides,
        kernel_sizes=planned.kernel_sizes,
        deep_supervision=False,
    )
    import torch

    counted = []
    for layer in network.modules():
        if isinstance(layer, (torch.nn.Conv3d, torch.nn.ConvTranspose3d)):
            layer.register_forward_hook(lambda _layer, _inputs, output: counted.append(output.numel()))
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 1, *planned.patch_size))
    assert feature_values(planned, 5) == sum(counted)
