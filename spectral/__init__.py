"""Laplacians, spectra, sensitivities and the spectral pruners.

``A[i, j] = w`` is the edge i -> j everywhere. See :mod:`.weighted_graph` for the matrices that
``laplacian=`` names.
"""

from graphprune.util.attributes import suggest_names

from .linalg.arpack import solve_leading
from .linalg.eigensolver import component_sizes
from .linalg.sensitivity import removal_effects, rotation, sensitivity
from .linalg.spectra import drift, leading, spectrum, stable_step
from .linalg.weighted_graph import WeightedGraph, close, laplacian, weighted_graph
from .methods.baselines import EffectiveResistance, Magnitude, Taylor, effective_resistance
from .methods.cut_choice import scheduled
from .methods.dynamic import DynamicPruning
from .methods.sparsifiers import Degree, GapDeletion, KNeighbour
from .methods.spectral import (
    SpectralPruning,
    SpectralScores,
    edge_weights,
    feedback_dependence,
    message_norms,
)
from .plotting import plot
from .search.prune import SpectralMask, prune
from .search.published import published_edge

__all__ = [
    "Degree",
    "DynamicPruning",
    "EffectiveResistance",
    "GapDeletion",
    "KNeighbour",
    "Magnitude",
    "SpectralMask",
    "SpectralPruning",
    "SpectralScores",
    "Taylor",
    "WeightedGraph",
    "close",
    "component_sizes",
    "drift",
    "edge_weights",
    "effective_resistance",
    "feedback_dependence",
    "laplacian",
    "leading",
    "message_norms",
    "plot",
    "prune",
    "published_edge",
    "removal_effects",
    "rotation",
    "scheduled",
    "sensitivity",
    "solve_leading",
    "spectrum",
    "stable_step",
    "weighted_graph",
]

suggest_names(__name__)
