"""Comparing circuits: of tasks, prompts, seeds, methods and models."""

from graphprune.util.attributes import suggest_names

from .circuit_comparison import (
    QUANTITIES,
    CircuitComparison,
    NodeOverlap,
    PairOverlap,
    SampledNull,
    ScoreOverlap,
)
from .compare_circuits import compare_circuits
from .compare_profiles import ProfileComparison, compare_profiles
from .count_distribution import CountDistribution
from .edge_groups import AXES, STRATA, EdgeGroups, Levels, Strata, edge_groups, levels, make_strata
from .overlap_curve import OverlapCurve, OverlapPoint, matched_overlap
from .overlap_nulls import NULLS, OverlapNull, overlap_distribution, overlap_null
from .p_values import holm
from .preference_distance import PreferenceDistance
from .profile import CircuitProfile, ProfileGroup, circuit_profile, profile_difference
from .profile_difference import GroupDifference, ProfileDifference
from .score_overlap import RankCorrelation, rank_correlation, weighted_jaccard

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

suggest_names(__name__)
