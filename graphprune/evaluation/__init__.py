"""Evaluation: how faithful a circuit is, at one size or over all of them."""

from .curve import MIB_SIZES, FaithfulnessCurve, faithfulness_curve
from .recovery import Recovery, auroc, recovery, stability
from .report import EvaluationReport, evaluate

__all__ = [
    "MIB_SIZES",
    "EvaluationReport",
    "FaithfulnessCurve",
    "Recovery",
    "auroc",
    "evaluate",
    "faithfulness_curve",
    "recovery",
    "stability",
]
