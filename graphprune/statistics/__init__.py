"""Statistics of circuits: tests with p-values, stability, distribution shift, sanity controls."""

from .battery import TESTS, Examination, examine
from .circuits import random_circuits
from .controls import controls
from .hsic import hsic, hsic_test
from .hypotheses import equivalence_test, independence_test, minimality_test
from .reference import necessity_test, sufficiency_test
from .result import Finding
from .sanity import randomised_weights, shuffled_labels
from .stability import stability
from .transfer import transfer
from .wang import completeness, minimality

__all__ = [
    "TESTS",
    "Examination",
    "Finding",
    "completeness",
    "controls",
    "equivalence_test",
    "examine",
    "hsic",
    "hsic_test",
    "independence_test",
    "minimality",
    "minimality_test",
    "necessity_test",
    "random_circuits",
    "randomised_weights",
    "shuffled_labels",
    "stability",
    "sufficiency_test",
    "transfer",
]
