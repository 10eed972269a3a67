"""Methods: frozen dataclasses of settings that score or prune any masked model."""

from graphprune.core.ablation import resolve_ablation
from graphprune.core.method import Method, Pruner, Scorer
from graphprune.util.attributes import suggest_names

from .acdc import ACDC
from .calibration import CalibratedRanking
from .edge_pruning import EdgePruning
from .ensembles import HybridEnsemble, ParallelEnsemble, SequentialEnsemble
from .flow import InformationFlow, Random
from .gradient import EAP, EAPIG, CleanCorrupted, integration_points
from .matryoshka import MatryoshkaPruning
from .nodes import NAP, NAPIG
from .optimiser import MaskOptimiser
from .pahq import PAHQ, RTNQ
from .patching import ExactPatching, IntegratedMaskGradient
from .probing import SubnetworkProbing
from .relevance import RelP
from .ugs import UGS, UniformGradientSampling

__all__ = [
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
    "MaskOptimiser",
    "MatryoshkaPruning",
    "Method",
    "ParallelEnsemble",
    "Pruner",
    "Random",
    "RelP",
    "Scorer",
    "SequentialEnsemble",
    "SubnetworkProbing",
    "UniformGradientSampling",
    "integration_points",
    "resolve_ablation",
]

suggest_names(__name__)
