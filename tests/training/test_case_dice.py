"""The DSC during a training against a loop over cases and classes, absent classes included."""

import numpy as np
import torch

from dlunet.training.case_dice import CaseDice


def loop(cases, classes):
    means = []
    for label in range(1, classes):
        values = []
        for prediction, truth in cases:
            true, found = truth == label, prediction == label
            if true.any():
                values.append(2 * (true & found).sum() / (true.sum() + found.sum()))
        means.append(np.mean(values) if values else np.nan)
    return means


def test_means_are_over_the_cases_that_contain_a_class():
    """Class 4 is in no label map, class 3 in one alone, but predicted in others."""
    rng = np.random.default_rng(0)
    cases = [(rng.integers(0, 5, (4, 6, 7)), rng.integers(0, highest, (4, 6, 7))) for highest in (3, 4, 2, 1)]
    metric = CaseDice(5)
    for prediction, truth in cases:
        metric.update(torch.as_tensor(prediction), torch.as_tensor(truth, dtype=torch.uint8))
    expected = loop(cases, 5)
    assert np.isnan(expected).tolist() == [False, False, False, True]
    np.testing.assert_allclose(metric.compute().numpy(), expected, rtol=1e-6)
