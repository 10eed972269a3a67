"""Comparing circuits: of tasks, prompts, seeds, methods and models."""

from .axes import AXES, EdgeGroups, Levels, edge_groups, levels
from .compare import compare_circuits
from .counts import CountDistribution, holm
from .matched import OverlapCurve, OverlapPoint, matched_overlap
from .nulls import (
    NULLS,
    STRATA,
    OverlapNull,
    Strata,
    make_strata,
    overlap_distribution,
    overlap_null,
)
from .preference import PreferenceDistance
from .profile import CircuitProfile, ProfileGroup, circuit_profile
from .profile_comparison import ProfileComparison, compare_profiles
from .profile_difference import GroupDifference, ProfileDifference, profile_difference
from .result import (
    QUANTITIES,
    CircuitComparison,
    NodeOverlap,
    PairOverlap,
    SampledNull,
    ScoreOverlap,
)
from .weighted import RankCorrelation, rank_correlation, weighted_jaccard

__all__ = [
    "AXES",
    "NULLS",
    "QUANTITIES",
    "STRATA",
    "CircuitComparison",
    "CircuitProfile",
    "CountDistribution",
    "EdgeGroups",
    "GroupDifference",
    "Levels",
    "NodeOverlap",
    "OverlapCurve",
    "OverlapNull",
    "OverlapPoint",
    "PairOverlap",
    "PreferenceDistance",
    "ProfileComparison",
    "ProfileDifference",
    "ProfileGroup",
    "RankCorrelation",
    "SampledNull",
    "ScoreOverlap",
    "Strata",
    "circuit_profile",
    "compare_circuits",
    "compare_profiles",
    "edge_groups",
    "holm",
    "levels",
    "make_strata",
    "matched_overlap",
    "overlap_distribution",
    "overlap_null",
    "profile_difference",
    "rank_correlation",
    "weighted_jaccard",
]
