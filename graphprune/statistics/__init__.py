"""Statistics of circuits: tests with p-values, stability, distribution shift, sanity controls."""

from graphprune.util.attributes import suggest_names

from .completeness import completeness, minimality
from .controls import controls
from .examination import TESTS, Examination, examine
from .finding import Finding
from .hsic import hsic, hsic_test
from .hypotheses import equivalence_test, independence_test, minimality_test
from .random_circuits import random_circuits
from .random_controls import randomised_weights, shuffled_labels
from .stability import stability
from .sufficiency import necessity_test, sufficiency_test
from .transfer import transfer

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

suggest_names(__name__)
