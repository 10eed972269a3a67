"""Laplacians, spectra, sensitivities and the spectral pruners.

``A[i, j] = w`` is the edge i -> j everywhere. See :mod:`graphprune.spectral.laplacians` for kinds.
"""

from .arpack import solve_leading
from .autograd import rotation
from .baselines import EffectiveResistance, Magnitude, Taylor, effective_resistance
from .components import component_sizes
from .cutting import SpectralMask, prune
from .drift import drift
from .dynamic import DynamicPruning, scheduled
from .effects import removal_effects
from .laplacians import laplacian
from .large import leading
from .pictures import plot
from .pruning import SpectralPruning, SpectralScores, feedback_dependence
from .published import published_edge
from .sensitivity import sensitivity
from .spectra import spectrum
from .stability import stable_step
from .weighing import edge_weights, message_norms
from .wiring import Wiring, close, wiring

__all__ = [
    "DynamicPruning",
    "EffectiveResistance",
    "Magnitude",
    "SpectralMask",
    "SpectralPruning",
    "SpectralScores",
    "Taylor",
    "Wiring",
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
    "wiring",
]
