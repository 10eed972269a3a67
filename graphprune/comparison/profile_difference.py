"""Two profiles beside each other, of one graph or of two.

On one graph the test looks at the edges that only one of the two circuits has. If the circuits did
not differ, which of these are the first one's would have nothing to do with their group: the
number of them in a group is hypergeometric (``test == "exchange"``, exact). Between different
graphs there is no such pairing: whether the odds of being kept, inside a group against outside,
are the same in both models is tested by Woolf's comparison of log odds ratios with half an edge
added to each count (``test == "woolf"``, normal approximation; Woolf 1955). P-values are
two-sided, and adjusted by Holm's method over all groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch

from graphprune.circuit import Circuit
from graphprune.comparison.align import mask_of, require_named, same_places
from graphprune.comparison.axes import edge_groups, usable_axes
from graphprune.comparison.counts import holm, hypergeometric
from graphprune.comparison.profile import (
    PROFILE_AXES,
    CircuitProfile,
    ProfileGroup,
    circuit_profile,
    total_variation,
    two_sided,
)
from graphprune.errors import InputError
from graphprune.mask import EdgeMask

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ProfileComparison", "ProfileDifference", "compare_profiles", "profile_difference"]

RELATIVE_AXES = ("source_depth", "target_depth", "source_kind", "target_kind", "kind")
"""Axes that mean the same in models of different depth and width."""


@dataclass(frozen=True, kw_only=True)
class GroupDifference:
    """A group's share in two circuits; enrichments are ``None`` where a graph lacks the group."""

    axis: str
    group: str
    share_first: float
    share_second: float
    difference: float
    enrichment_first: float | None
    enrichment_second: float | None
    test: str
    p: float | None
    p_adjusted: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ProfileDifference:
    """Two profiles, group by group.

    ``distance[axis]`` is half the sum of the differences of shares (total variation), and
    ``graph_distance[axis]`` that of the two graphs themselves: 0 on one graph.
    """

    groups: tuple[GroupDifference, ...]
    distance: Mapping[str, float]
    graph_distance: Mapping[str, float]

    def group(self, axis: str, name: str) -> GroupDifference:
        """One group by name."""
        for group in self.groups:
            if (group.axis, group.group) == (axis, name):
                return group
        raise InputError(f"no group {name!r} along {axis!r}; axes: {', '.join(self.distance)}")

    def to_frame(self) -> pd.DataFrame:
        """A row for each group."""
        import pandas as pd

        return pd.DataFrame([dict(group.__dict__) for group in self.groups])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "distance": dict(self.distance),
            "graph_distance": dict(self.graph_distance),
            "groups": [dict(group.__dict__) for group in self.groups],
        }


def profile_difference(first: CircuitProfile, second: CircuitProfile) -> ProfileDifference:
    """Group by group, along the axes that both profiles have.

    Raises :class:`InputError` for empty circuits, profiles without a common axis, and profiles
    whose relative depths are divided differently.

    Example:
        >>> from graphprune import ComputationalGraph
        >>> graph = ComputationalGraph.from_edges(
        ...     [("in", "a"), ("in", "b"), ("a", "out"), ("b", "out")])
        >>> early, late = EdgeMask(graph, [1, 1, 0, 0]), EdgeMask(graph, [0, 0, 1, 1])
        >>> found = profile_difference(circuit_profile(early), circuit_profile(late))
        >>> found.distance["target_level"], round(found.group("target_level", "1").p, 4)
        (1.0, 0.3333)
    """
    axes = [axis for axis in first.axes if axis in second.axes]
    if not axes:
        raise InputError(f"the profiles have no axis in common: {first.axes}, {second.axes}")
    if first.bins != second.bins:
        raise InputError(f"the profiles divide depth into {first.bins} and {second.bins} parts")
    for profile in (first, second):
        if not profile.mask.num_kept:
            raise InputError("an empty circuit has no shares to compare")
    order = same_places(first.mask.graph, second.mask.graph)
    moved = None
    if order is not None:
        moved = EdgeMask(first.mask.graph, second.mask.values[torch.from_numpy(order)])
    rows: list[dict[str, Any]] = []
    distance, graph_distance = {}, {}
    for axis in axes:
        ones = {group.group: group for group in first.along(axis)}
        twos = {group.group: group for group in second.along(axis)}
        if moved is None:
            p = {name: _woolf(ones.get(name), twos.get(name), first, second) for name in ones}
        else:
            p = _exchange(first.mask, moved, axis, first.bins)
        for name in dict.fromkeys([*ones, *twos]):
            one, two = ones.get(name), twos.get(name)
            shares = [float(g.share or 0.0) if g else 0.0 for g in (one, two)]
            rows.append(
                {
                    "axis": axis,
                    "group": name,
                    "share_first": shares[0],
                    "share_second": shares[1],
                    "difference": shares[0] - shares[1],
                    "enrichment_first": one.enrichment if one else None,
                    "enrichment_second": two.enrichment if two else None,
                    "test": "woolf" if moved is None else "exchange",
                    "p": p.get(name),
                }
            )
        named = [{n: g.share or 0.0 for n, g in groups.items()} for groups in (ones, twos)]
        whole = [{n: g.graph_share for n, g in groups.items()} for groups in (ones, twos)]
        distance[axis] = total_variation(*named)
        graph_distance[axis] = total_variation(*whole)
    adjusted = holm([row["p"] for row in rows])
    return ProfileDifference(
        groups=tuple(
            GroupDifference(**row, p_adjusted=p) for row, p in zip(rows, adjusted, strict=True)
        ),
        distance=distance,
        graph_distance=graph_distance,
    )


def _exchange(first: EdgeMask, second: EdgeMask, axis: str, bins: int) -> dict[str, float | None]:
    """The exact test on edges that only one circuit has, for every group."""
    one, two = first.kept.numpy(), second.kept.numpy()
    groups = edge_groups(first.graph, axis, bins=bins)
    apart, ours = groups.count(one ^ two), groups.count(one & ~two)
    whole, all_ours = int(apart.sum()), int(ours.sum())
    return {
        name: two_sided(hypergeometric(whole, int(d), all_ours), int(k))
        for name, d, k in zip(groups.names, apart, ours, strict=True)
    }


def _woolf(
    one: ProfileGroup | None,
    two: ProfileGroup | None,
    first: CircuitProfile,
    second: CircuitProfile,
) -> float | None:
    if one is None or two is None:
        return None
    logs, variances = [], []
    for group, profile in ((one, first), (two, second)):
        kept, total = profile.mask.num_kept, profile.mask.graph.num_edges
        if group.edges == total:
            return None
        cells = [
            group.kept,
            group.edges - group.kept,
            kept - group.kept,
            total - group.edges - kept + group.kept,
        ]
        a, b, c, d = (cell + 0.5 for cell in cells)
        logs.append(math.log(a * d / (b * c)))
        variances.append(1 / a + 1 / b + 1 / c + 1 / d)
    z = (logs[0] - logs[1]) / math.sqrt(sum(variances))
    return math.erfc(abs(z) / math.sqrt(2))


@dataclass(frozen=True, kw_only=True, eq=False)
class ProfileComparison:
    """Profiles of several circuits and the difference of each pair.

    ``same_graph`` says whether all lie on one graph; ``left_out`` names axes that some graph does
    not have, with the reason.
    """

    profiles: Mapping[str, CircuitProfile]
    differences: Mapping[tuple[str, str], ProfileDifference]
    axes: tuple[str, ...]
    same_graph: bool
    left_out: Mapping[str, str]

    def to_frame(self) -> pd.DataFrame:
        """A row for each circuit and group."""
        import pandas as pd

        frames = [p.to_frame().assign(circuit=name) for name, p in self.profiles.items()]
        whole = pd.concat(frames, ignore_index=True)
        return whole[["circuit", *(c for c in whole if c != "circuit")]]

    def differences_frame(self) -> pd.DataFrame:
        """A row for each pair and group."""
        import pandas as pd

        rows = [
            {"first": first, "second": second, **group.__dict__}
            for (first, second), found in self.differences.items()
            for group in found.groups
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "axes": list(self.axes),
            "same_graph": self.same_graph,
            "left_out": dict(self.left_out),
            "profiles": {name: p.to_dict() for name, p in self.profiles.items()},
            "differences": [
                {"first": first, "second": second, **found.to_dict()}
                for (first, second), found in self.differences.items()
            ],
        }

    def plot(self, path: Any = None) -> Any:
        """Shares by group, a panel an axis, a colour a circuit; gives the figure."""
        from graphprune.comparison.figures import plot_profiles

        return plot_profiles(self.profiles, path=path)


def compare_profiles(
    circuits: Mapping[str, Circuit | EdgeMask],
    axes: Sequence[str] | None = None,
    *,
    bins: int = 4,
) -> ProfileComparison:
    """Where the edges of several circuits lie, on one graph or on graphs of different models.

    Args:
        circuits: at least two, by name.
        axes: ``None``: levels, distances and kinds on one graph; relative depth and kinds on
            several, in which levels would not mean the same.
        bins: parts of a relative depth.

    Pairs with an empty circuit have no difference. Raises :class:`InputError` as
    :func:`circuit_profile` does.

    Example:
        >>> from graphprune import ComputationalGraph
        >>> short = ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
        >>> long = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")])
        >>> found = compare_profiles(
        ...     {"short": EdgeMask(short, [1, 0]), "long": EdgeMask(long, [1, 1, 0, 0])}, bins=2)
        >>> found.same_graph, found.differences["short", "long"].distance["source_depth"]
        (False, 0.0)
    """
    require_named(circuits)
    masks = {name: mask_of(thing, name) for name, thing in circuits.items()}
    base = next(iter(masks.values())).graph
    same = all(same_places(base, mask.graph) is not None for mask in masks.values())
    default = PROFILE_AXES if same else RELATIVE_AXES
    left_out: dict[str, str] = {}
    for name, mask in masks.items():
        _, missing = usable_axes(mask.graph, axes, default)
        left_out |= {axis: f"{name}: {why}" for axis, why in missing.items()}
    used = tuple(axis for axis in (default if axes is None else axes) if axis not in left_out)
    profiles = {name: circuit_profile(mask, used, bins=bins) for name, mask in masks.items()}
    differences = {
        (first, second): profile_difference(profiles[first], profiles[second])
        for first, second in combinations(masks, 2)
        if masks[first].num_kept and masks[second].num_kept
    }
    return ProfileComparison(
        profiles=profiles,
        differences=differences,
        axes=used,
        same_graph=same,
        left_out=left_out,
    )
