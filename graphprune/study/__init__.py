"""Studies: systems by tasks by methods by densities by seeds, as independent jobs."""

from .cases import Case, make_case, system_names
from .entries import StudyMethod, StudySystem
from .results import StudyResults
from .study import Study

__all__ = [
    "Case",
    "Study",
    "StudyMethod",
    "StudyResults",
    "StudySystem",
    "make_case",
    "system_names",
]
