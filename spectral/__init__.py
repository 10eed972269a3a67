"""Laplacians, spectra, sensitivities and the spectral pruners.

``A[i, j] = w`` is the edge i -> j everywhere. See :mod:`.laplacians` for the
matrices that ``laplacian=`` names.
"""

from .linalg.arpack import solve_leading
from .linalg.autograd import rotation
from .linalg.components import component_sizes
from .linalg.drift import drift
from .linalg.effects import removal_effects
from .linalg.laplacians import laplacian
from .linalg.large import leading
from .linalg.sensitivity import sensitivity
from .linalg.spectra import spectrum
from .linalg.stability import stable_step
from .linalg.wiring import Wiring, close, wiring
from .methods.baselines import EffectiveResistance, Magnitude, Taylor, effective_resistance
from .methods.dynamic import DynamicPruning, scheduled
from .methods.spectral import SpectralPruning, SpectralScores, feedback_dependence
from .methods.weighing import edge_weights, message_norms
from .pictures import plot
from .search.prune import SpectralMask, prune
from .search.published import published_edge

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
