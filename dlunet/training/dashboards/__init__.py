"""What a run shows on dashboards, Weights & Biases or TensorBoard, beyond the metrics in ``metrics.csv``.

Nothing here affects training: networks are only evaluated, with random generators of their own.
"""

from dlunet.training.dashboards.callbacks import dashboard_callbacks
from dlunet.training.dashboards.results import log_results

__all__ = ["dashboard_callbacks", "log_results"]
