"""Studies: systems by tasks by methods by densities by seeds, as independent jobs."""

from .results import StudyResults
from .spec import StudyMethod, StudySystem
from .study import Study
from .systems import Case, make_case, system_names

__all__ = [
    "Case",
    "Study",
    "StudyMethod",
    "StudyResults",
    "StudySystem",
    "make_case",
    "system_names",
]
