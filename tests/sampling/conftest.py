"""Prepared cases made from arrays."""

import pytest

from dlunet.preparation import PreparedCase
from dlunet.preparation.store import save_prepared


@pytest.fixture
def make_case(tmp_path):
    """``make_case(name, image, label)`` saves a prepared case and opens it; ``label`` may be None."""

    def make(name, image, label=None):
        save_prepared(tmp_path / name, image, label, {})
        return PreparedCase.open(tmp_path / name)

    return make
