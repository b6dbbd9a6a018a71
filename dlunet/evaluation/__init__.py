"""Evaluation by FLARE22's rules: DSC, NSD and the score tables of a folder of cases.

The dice similarity coefficient (DSC) compares volumes; the normalised surface dice (NSD) compares surfaces and ignores
deviations within the tolerance of a class. :func:`score_case` applies FLARE22's rules to one label map and
:func:`evaluate_folder` to a folder of them; :func:`dice_score` and :func:`surface_dice` are the plain measures.
"""

from dlunet.evaluation.folder import evaluate_folder
from dlunet.evaluation.metrics import METRICS, Metric, find_metrics, read_metrics, register_metric
from dlunet.evaluation.pairs import predicted_references
from dlunet.evaluation.scores import OrganScore, dice_score, score_case, surface_dice
from dlunet.evaluation.shards import evaluate_shard
from dlunet.evaluation.summary import low_cases, print_summary, read_scores, summarize_scores

__all__ = [
    "METRICS",
    "Metric",
    "OrganScore",
    "dice_score",
    "evaluate_folder",
    "evaluate_shard",
    "find_metrics",
    "low_cases",
    "predicted_references",
    "print_summary",
    "read_metrics",
    "read_scores",
    "register_metric",
    "score_case",
    "summarize_scores",
    "surface_dice",
]
