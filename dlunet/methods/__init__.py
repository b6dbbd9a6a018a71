"""Training methods: how a batch becomes a loss. A new one is a file here and a file in ``conf/method``."""

from dlunet.methods.base import Averaged, Batch, Method, Progress, Step, Stream, Terms, Trained
from dlunet.methods.cross_pseudo import CrossPseudo, mixed_pseudo_labels
from dlunet.methods.cutmix import cut_mix, draw_box, draw_masks
from dlunet.methods.entropy_minimisation import EntropyMinimisation
from dlunet.methods.fixmatch import FixMatch
from dlunet.methods.mean_teacher import MeanTeacher
from dlunet.methods.outputs import entropy, probabilities
from dlunet.methods.ramps import sigmoid_ramp
from dlunet.methods.side_by_side import side_by_side
from dlunet.methods.supervised import Supervised
from dlunet.methods.ua_mt import UncertaintyAwareMeanTeacher

__all__ = [
    "Averaged",
    "Batch",
    "CrossPseudo",
    "EntropyMinimisation",
    "FixMatch",
    "MeanTeacher",
    "Method",
    "Progress",
    "Step",
    "Stream",
    "Supervised",
    "Terms",
    "Trained",
    "UncertaintyAwareMeanTeacher",
    "cut_mix",
    "draw_box",
    "draw_masks",
    "entropy",
    "mixed_pseudo_labels",
    "probabilities",
    "side_by_side",
    "sigmoid_ramp",
]
