"""Evaluation: how faithful a circuit is, at one size or over all of them."""

from graphprune.util.attributes import suggest_names

from .curve import FaithfulnessCurve, faithfulness_curve
from .exactness import (
    SameOutputs,
    equivalent,
    is_minimal,
    minimal_circuit,
    removable_edges,
    same_outputs,
)
from .fidelity import Fidelity, fidelity
from .recovery import Recovery, auroc, mean_jaccard, recovery
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
    "is_minimal",
    "mean_jaccard",
    "minimal_circuit",
    "recovery",
    "removable_edges",
    "same_outputs",
]

suggest_names(__name__)
