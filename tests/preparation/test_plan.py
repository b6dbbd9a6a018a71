"""The plan, which is stored with the weights."""

import json

from dlunet.preparation import Intensity, Plan


def test_a_plan_survives_json():
    plan = Plan.of([2.5, 1.5, 1.5], [56, 160, 160], Intensity(-300.25, 280.5, 90.125, 60.0))
    assert plan.patch_size == (56, 160, 160) and plan.spacing == (2.5, 1.5, 1.5)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
