"""graphprune: prune the edges of a model's computational graph, and find the circuit that works.

Methods give scores, scores make masks, evaluation and export read masks. Importing graphprune loads
nothing heavy: each name loads when first used, adapters when a model is wrapped.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune import precision, tasks
    from graphprune.batch import Batch, Examples
    from graphprune.circuit import Circuit
    from graphprune.errors import (
        FetchError,
        FormatError,
        GraphMismatchError,
        GraphPruneError,
        InputError,
        MissingExtraError,
        NumericalError,
        UnsupportedModelError,
    )
    from graphprune.evaluation import (
        MIB_SIZES,
        EvaluationReport,
        FaithfulnessCurve,
        auroc,
        equivalent,
        evaluate,
        evaluate_all,
        faithfulness_curve,
        greedy_polish,
        is_minimal,
        recovery,
        removable_edges,
        same_outputs,
        stability,
    )
    from graphprune.graph import ComputationalGraph, Node
    from graphprune.mask import EdgeMask
    from graphprune.methods import (
        ACDC,
        EAP,
        EAPIG,
        NAP,
        NAPIG,
        UGS,
        CleanCorrupted,
        EdgePruning,
        ExactPatching,
        InformationFlow,
        IntegratedMaskGradient,
        MatryoshkaPruning,
        Pruner,
        Random,
        RelP,
        Scorer,
        SubnetworkProbing,
    )
    from graphprune.metrics import Metric
    from graphprune.model import Ablation, Gradients, MaskedModel, Messages, Reference
    from graphprune.planning import Plan, Throughput, plan
    from graphprune.precision import Lowered, PrecisionPolicy
    from graphprune.progress import quiet
    from graphprune.pruned import ExportedModel, Pruned
    from graphprune.registry import make_method, method_names, supported, wrap
    from graphprune.scores import EdgeScores, NodeScores, PositionalEdgeScores
    from graphprune.task import Task

__version__ = "0.1.0"

__all__ = [
    "ACDC",
    "EAP",
    "EAPIG",
    "MIB_SIZES",
    "NAP",
    "NAPIG",
    "UGS",
    "Ablation",
    "Batch",
    "Circuit",
    "CleanCorrupted",
    "ComputationalGraph",
    "EdgeMask",
    "EdgePruning",
    "EdgeScores",
    "EvaluationReport",
    "ExactPatching",
    "Examples",
    "ExportedModel",
    "FaithfulnessCurve",
    "FetchError",
    "FormatError",
    "Gradients",
    "GraphMismatchError",
    "GraphPruneError",
    "InformationFlow",
    "InputError",
    "IntegratedMaskGradient",
    "Lowered",
    "MaskedModel",
    "MatryoshkaPruning",
    "Messages",
    "Metric",
    "MissingExtraError",
    "Node",
    "NodeScores",
    "NumericalError",
    "Plan",
    "PositionalEdgeScores",
    "PrecisionPolicy",
    "Pruned",
    "Pruner",
    "Random",
    "Reference",
    "RelP",
    "Scorer",
    "SubnetworkProbing",
    "Task",
    "Throughput",
    "UnsupportedModelError",
    "auroc",
    "equivalent",
    "evaluate",
    "evaluate_all",
    "faithfulness_curve",
    "greedy_polish",
    "is_minimal",
    "make_method",
    "method_names",
    "plan",
    "precision",
    "quiet",
    "recovery",
    "removable_edges",
    "same_outputs",
    "stability",
    "supported",
    "tasks",
    "wrap",
]


# Where each public name lives. They load when first used, so that the command line answers --help
# without waiting for torch.
_HOMES = {
    "graphprune.batch": (
        "Batch",
        "Examples",
    ),
    "graphprune.circuit": ("Circuit",),
    "graphprune.errors": (
        "FetchError",
        "FormatError",
        "GraphMismatchError",
        "GraphPruneError",
        "InputError",
        "MissingExtraError",
        "NumericalError",
        "UnsupportedModelError",
    ),
    "graphprune.evaluation": (
        "MIB_SIZES",
        "EvaluationReport",
        "FaithfulnessCurve",
        "auroc",
        "equivalent",
        "evaluate",
        "evaluate_all",
        "faithfulness_curve",
        "greedy_polish",
        "is_minimal",
        "recovery",
        "removable_edges",
        "same_outputs",
        "stability",
    ),
    "graphprune.graph": (
        "ComputationalGraph",
        "Node",
    ),
    "graphprune.mask": ("EdgeMask",),
    "graphprune.methods": (
        "ACDC",
        "EAP",
        "EAPIG",
        "NAP",
        "NAPIG",
        "UGS",
        "CleanCorrupted",
        "EdgePruning",
        "ExactPatching",
        "InformationFlow",
        "IntegratedMaskGradient",
        "MatryoshkaPruning",
        "Pruner",
        "Random",
        "RelP",
        "Scorer",
        "SubnetworkProbing",
    ),
    "graphprune.metrics": ("Metric",),
    "graphprune.model": (
        "Ablation",
        "Gradients",
        "MaskedModel",
        "Messages",
        "Reference",
    ),
    "graphprune.planning": (
        "Plan",
        "Throughput",
        "plan",
    ),
    "graphprune.precision": (
        "Lowered",
        "PrecisionPolicy",
    ),
    "graphprune.progress": ("quiet",),
    "graphprune.pruned": (
        "ExportedModel",
        "Pruned",
    ),
    "graphprune.registry": (
        "make_method",
        "method_names",
        "supported",
        "wrap",
    ),
    "graphprune.scores": (
        "EdgeScores",
        "NodeScores",
        "PositionalEdgeScores",
    ),
    "graphprune.task": ("Task",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_PACKAGES = ("adapters", "spectral", "tasks", "methods", "evaluation", "export", "precision")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"graphprune.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'graphprune' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
