"""graphprune: prune the edges of a model's computational graph, and find the circuit that works.

Methods give scores, scores make masks, evaluation and export read masks. Importing graphprune loads
neither transformers nor torch_geometric: adapters load when a model is wrapped.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphprune import tasks
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
    evaluate,
    faithfulness_curve,
    recovery,
    stability,
)
from graphprune.graph import ComputationalGraph, Node
from graphprune.mask import EdgeMask
from graphprune.methods import (
    EAP,
    EAPIG,
    NAP,
    NAPIG,
    CleanCorrupted,
    ExactPatching,
    InformationFlow,
    IntegratedMaskGradient,
    Pruner,
    Random,
    RelP,
    Scorer,
)
from graphprune.metrics import Metric
from graphprune.model import Ablation, Gradients, MaskedModel, Messages, Reference
from graphprune.progress import quiet
from graphprune.registry import make_method, method_names, supported, wrap
from graphprune.scores import EdgeScores, NodeScores, PositionalEdgeScores
from graphprune.task import Task

if TYPE_CHECKING:
    from graphprune import adapters, spectral

__version__ = "0.1.0"

__all__ = [
    "EAP",
    "EAPIG",
    "MIB_SIZES",
    "NAP",
    "NAPIG",
    "Ablation",
    "Batch",
    "Circuit",
    "CleanCorrupted",
    "ComputationalGraph",
    "EdgeMask",
    "EdgeScores",
    "EvaluationReport",
    "ExactPatching",
    "Examples",
    "FaithfulnessCurve",
    "FetchError",
    "FormatError",
    "Gradients",
    "GraphMismatchError",
    "GraphPruneError",
    "InformationFlow",
    "InputError",
    "IntegratedMaskGradient",
    "MaskedModel",
    "Messages",
    "Metric",
    "MissingExtraError",
    "Node",
    "NodeScores",
    "NumericalError",
    "PositionalEdgeScores",
    "Pruner",
    "Random",
    "Reference",
    "RelP",
    "Scorer",
    "Task",
    "UnsupportedModelError",
    "adapters",
    "auroc",
    "evaluate",
    "faithfulness_curve",
    "make_method",
    "method_names",
    "quiet",
    "recovery",
    "spectral",
    "stability",
    "supported",
    "tasks",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in ("adapters", "spectral"):
        return import_module(f"graphprune.{name}")
    raise AttributeError(f"module 'graphprune' has no attribute {name!r}")
