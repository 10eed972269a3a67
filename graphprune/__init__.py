"""graphprune: prune the edges of a model's computational graph, and find the circuit that works.

Methods give scores, scores make masks, evaluation and export read masks. Importing graphprune loads
nothing heavy: each name loads when first used, adapters when a model is wrapped.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune import comparison, precision, statistics, study, tasks
    from graphprune.batch import Batch, Examples
    from graphprune.circuit import Circuit
    from graphprune.comparison import (
        CircuitComparison,
        CircuitProfile,
        OverlapCurve,
        ProfileComparison,
        circuit_profile,
        compare_circuits,
        compare_profiles,
        matched_overlap,
        weighted_jaccard,
    )
    from graphprune.ensembling import combine_scores
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
        EvaluationReport,
        FaithfulnessCurve,
        auroc,
        equivalent,
        evaluate,
        evaluate_all,
        faithfulness_curve,
        fidelity,
        is_minimal,
        mean_jaccard,
        mib_auroc,
        mib_curve,
        minimal_circuit,
        recovery,
        removable_edges,
        same_outputs,
    )
    from graphprune.graph import ComputationalGraph, Node
    from graphprune.mask import EdgeMask
    from graphprune.methods import (
        ACDC,
        EAP,
        EAPIG,
        NAP,
        NAPIG,
        PAHQ,
        RTNQ,
        UGS,
        CalibratedRanking,
        CleanCorrupted,
        EdgePruning,
        ExactPatching,
        HybridEnsemble,
        InformationFlow,
        IntegratedMaskGradient,
        MatryoshkaPruning,
        ParallelEnsemble,
        Pruner,
        Random,
        RelP,
        Scorer,
        SequentialEnsemble,
        SubnetworkProbing,
    )
    from graphprune.metrics import METRICS, Metric
    from graphprune.model import Ablation, Gradients, MaskedModel, Messages, Reference
    from graphprune.overlap import ExampleFingerprint
    from graphprune.planning import Plan, Throughput, plan
    from graphprune.precision import Lowered, PrecisionPolicy
    from graphprune.progress import quiet
    from graphprune.pruned import ExportedModel, Pruned
    from graphprune.registry import make_method, method_names, supported, wrap
    from graphprune.result import Result
    from graphprune.scores import EdgeScores, NodeScores, PositionalEdgeScores
    from graphprune.selection_bootstrap import BootstrapScores, bootstrap_scores
    from graphprune.selection_polish import polish
    from graphprune.sizes import MIB_SIZES
    from graphprune.study import Study
    from graphprune.task import Task

__version__ = "0.1.0"

__all__ = [
    "ACDC",
    "EAP",
    "EAPIG",
    "METRICS",
    "MIB_SIZES",
    "NAP",
    "NAPIG",
    "PAHQ",
    "RTNQ",
    "UGS",
    "Ablation",
    "Batch",
    "BootstrapScores",
    "CalibratedRanking",
    "Circuit",
    "CircuitComparison",
    "CircuitProfile",
    "CleanCorrupted",
    "ComputationalGraph",
    "EdgeMask",
    "EdgePruning",
    "EdgeScores",
    "EvaluationReport",
    "ExactPatching",
    "ExampleFingerprint",
    "Examples",
    "ExportedModel",
    "FaithfulnessCurve",
    "FetchError",
    "FormatError",
    "Gradients",
    "GraphMismatchError",
    "GraphPruneError",
    "HybridEnsemble",
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
    "OverlapCurve",
    "ParallelEnsemble",
    "Plan",
    "PositionalEdgeScores",
    "PrecisionPolicy",
    "ProfileComparison",
    "Pruned",
    "Pruner",
    "Random",
    "Reference",
    "RelP",
    "Result",
    "Scorer",
    "SequentialEnsemble",
    "Study",
    "SubnetworkProbing",
    "Task",
    "Throughput",
    "UnsupportedModelError",
    "auroc",
    "bootstrap_scores",
    "circuit_profile",
    "combine_scores",
    "compare_circuits",
    "compare_profiles",
    "comparison",
    "equivalent",
    "evaluate",
    "evaluate_all",
    "faithfulness_curve",
    "fidelity",
    "is_minimal",
    "make_method",
    "matched_overlap",
    "mean_jaccard",
    "method_names",
    "mib_auroc",
    "mib_curve",
    "minimal_circuit",
    "plan",
    "polish",
    "precision",
    "quiet",
    "recovery",
    "removable_edges",
    "same_outputs",
    "statistics",
    "study",
    "supported",
    "tasks",
    "weighted_jaccard",
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
    "graphprune.comparison": (
        "CircuitComparison",
        "CircuitProfile",
        "OverlapCurve",
        "ProfileComparison",
        "circuit_profile",
        "compare_circuits",
        "compare_profiles",
        "matched_overlap",
        "weighted_jaccard",
    ),
    "graphprune.ensembling": ("combine_scores",),
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
        "EvaluationReport",
        "FaithfulnessCurve",
        "auroc",
        "equivalent",
        "evaluate",
        "evaluate_all",
        "faithfulness_curve",
        "fidelity",
        "fidelity",
        "minimal_circuit",
        "is_minimal",
        "mib_auroc",
        "mib_curve",
        "recovery",
        "removable_edges",
        "same_outputs",
        "mean_jaccard",
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
        "PAHQ",
        "RTNQ",
        "UGS",
        "CalibratedRanking",
        "CleanCorrupted",
        "EdgePruning",
        "ExactPatching",
        "HybridEnsemble",
        "InformationFlow",
        "IntegratedMaskGradient",
        "MatryoshkaPruning",
        "ParallelEnsemble",
        "Pruner",
        "Random",
        "RelP",
        "Scorer",
        "SequentialEnsemble",
        "SubnetworkProbing",
    ),
    "graphprune.metrics": (
        "METRICS",
        "Metric",
    ),
    "graphprune.model": (
        "Ablation",
        "Gradients",
        "MaskedModel",
        "Messages",
        "Reference",
    ),
    "graphprune.overlap": ("ExampleFingerprint",),
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
    "graphprune.result": ("Result",),
    "graphprune.scores": (
        "EdgeScores",
        "NodeScores",
        "PositionalEdgeScores",
    ),
    "graphprune.study": ("Study",),
    "graphprune.selection_bootstrap": (
        "BootstrapScores",
        "bootstrap_scores",
    ),
    "graphprune.selection_polish": ("polish",),
    "graphprune.sizes": ("MIB_SIZES",),
    "graphprune.task": ("Task",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
# The core imports neither adapters nor spectral; what they bring is found by name alone.
_HOME_OF |= dict.fromkeys(("SpectralPruning", "SpectralScores"), "graphprune.spectral")
_PACKAGES = (
    "adapters",
    "comparison",
    "spectral",
    "tasks",
    "methods",
    "evaluation",
    "export",
    "precision",
    "statistics",
    "study",
)


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
