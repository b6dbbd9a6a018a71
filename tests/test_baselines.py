"""Scores of uninformed predictions on a synthetic abdomen: the lower bound for the scores in a report."""

import numpy as np
import pytest
import torch

from dlunet.evaluation import score_case
from dlunet.inference import Predictor
from dlunet.labels import FLARE22
from dlunet.networks import Bundle, LightUNet
from dlunet.phantom import make_phantom
from dlunet.preparation import Intensity, Plan
from dlunet.volumes import Geometry, Volume


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, "labelled", (32, 64, 64))


def mean_dsc(prediction, phantom) -> float:
    scores = score_case(prediction, phantom.labels, phantom.spacing, FLARE22)
    return float(np.mean([score.dsc for score in scores]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_untrained_network_scores_next_to_nothing(phantom, seed):
    torch.manual_seed(seed)
    steps = {"strides": [(1, 2, 2), (2, 2, 2)], "kernel_sizes": [(1, 3, 3), (3, 3, 3), (3, 3, 3)]}
    network = LightUNet(features=(8, 16, 32), **steps)
    plan = Plan.of((8, 6, 6), (16, 32, 32), Intensity(-150, 250, 60, 70))
    stored = Geometry(phantom.image.shape[::-1], phantom.spacing[::-1], (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    volume = Volume(phantom.image.astype(np.float32), phantom.spacing, stored)
    assert mean_dsc(Predictor(Bundle(network, plan, FLARE22)).segment(volume), phantom) < 0.05


def test_nothing_but_background_scores_one_for_absent_organs_only(phantom):
    absent = sum(not (phantom.labels == label.id).any() for label in FLARE22)
    assert mean_dsc(np.zeros_like(phantom.labels), phantom) == pytest.approx(absent / 13)
