"""Methods: frozen dataclasses of settings that score or prune any masked model."""

from .base import Method, Pruner, Scorer, resolve_ablation
from .flow import InformationFlow, Random
from .gradient import EAP, EAPIG, NAP, NAPIG, CleanCorrupted, RelP, integration_points
from .patching import ExactPatching, IntegratedMaskGradient

__all__ = [
    "EAP",
    "EAPIG",
    "NAP",
    "NAPIG",
    "CleanCorrupted",
    "ExactPatching",
    "InformationFlow",
    "IntegratedMaskGradient",
    "Method",
    "Pruner",
    "Random",
    "RelP",
    "Scorer",
    "integration_points",
    "resolve_ablation",
]
