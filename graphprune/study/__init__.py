"""Studies: systems by tasks by methods by densities by seeds, as independent jobs."""

from graphprune.util.attributes import suggest_names

from .cases import Case, make_case, system_names
from .check import CheckedCase, StudyCheck
from .entries import StudyMethod, StudySystem
from .mistakes import Mistake, StudyMistakes
from .results import StudyResults
from .study import Study

__all__ = [
    "Case",
    "CheckedCase",
    "Mistake",
    "Study",
    "StudyCheck",
    "StudyMethod",
    "StudyMistakes",
    "StudyResults",
    "StudySystem",
    "make_case",
    "system_names",
]

suggest_names(__name__)
