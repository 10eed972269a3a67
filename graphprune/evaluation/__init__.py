"""Evaluation: how faithful a circuit is, at one size or over all of them."""

from .benchmark import mib_auroc, mib_curve
from .curve import FaithfulnessCurve, faithfulness_curve
from .exactness import (
    SameOutputs,
    equivalent,
    greedy_polish,
    is_minimal,
    removable_edges,
    same_outputs,
)
from .fidelity import Fidelity, fidelity
from .recovery import Recovery, auroc, recovery, stability
from .report import EvaluationReport, evaluate, evaluate_all

__all__ = [
    "EvaluationReport",
    "FaithfulnessCurve",
    "Fidelity",
    "Recovery",
    "SameOutputs",
    "auroc",
    "equivalent",
    "evaluate",
    "evaluate_all",
    "faithfulness_curve",
    "fidelity",
    "greedy_polish",
    "is_minimal",
    "mib_auroc",
    "mib_curve",
    "recovery",
    "removable_edges",
    "same_outputs",
    "stability",
]
