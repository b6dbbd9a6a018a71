"""Training methods, which turn a batch into losses. A new one is a file here and a config in ``conf/method``."""

from dlunet.methods.base import Averaged, Batch, Fixed, Method, Mix, Progress, Step, Stream, Terms, Trained
from dlunet.methods.bcp import BidirectionalCopyPaste
from dlunet.methods.checks import check_terms, check_untrained, method_of
from dlunet.methods.cross_pseudo import CrossPseudo, mixed_pseudo_labels
from dlunet.methods.cross_teaching import CrossTeaching
from dlunet.methods.cutmix import cut_mix, draw_box, draw_masks
from dlunet.methods.dhc import DualDebiasedCoTraining
from dlunet.methods.entropy_minimisation import EntropyMinimisation
from dlunet.methods.fixmatch import FixMatch
from dlunet.methods.mean_teacher import MeanTeacher
from dlunet.methods.outputs import entropy, probabilities, pseudo_labels
from dlunet.methods.pseudo_label import PseudoLabel
from dlunet.methods.ramps import sigmoid_ramp
from dlunet.methods.supervised import Supervised
from dlunet.methods.ua_mt import UncertaintyAwareMeanTeacher
from dlunet.methods.unimatch import UniMatch

#: The built-in methods, by the names of their configs.
METHODS: dict[str, type[Method]] = {
    "bcp": BidirectionalCopyPaste,
    "cross_pseudo": CrossPseudo,
    "cross_teaching": CrossTeaching,
    "dhc": DualDebiasedCoTraining,
    "entropy_minimisation": EntropyMinimisation,
    "fixmatch": FixMatch,
    "mean_teacher": MeanTeacher,
    "pseudo_label": PseudoLabel,
    "supervised": Supervised,
    "ua_mt": UncertaintyAwareMeanTeacher,
    "unimatch": UniMatch,
}

__all__ = [
    "METHODS",
    "Averaged",
    "Batch",
    "BidirectionalCopyPaste",
    "CrossPseudo",
    "CrossTeaching",
    "DualDebiasedCoTraining",
    "EntropyMinimisation",
    "FixMatch",
    "Fixed",
    "MeanTeacher",
    "Method",
    "Mix",
    "Progress",
    "PseudoLabel",
    "Step",
    "Stream",
    "Supervised",
    "Terms",
    "Trained",
    "UncertaintyAwareMeanTeacher",
    "UniMatch",
    "check_terms",
    "check_untrained",
    "cut_mix",
    "draw_box",
    "draw_masks",
    "entropy",
    "method_of",
    "mixed_pseudo_labels",
    "probabilities",
    "pseudo_labels",
    "sigmoid_ramp",
]
