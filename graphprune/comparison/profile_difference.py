"""Two profiles beside each other, of one graph or of two.

How far apart two circuits are along an axis is measured by what they chose of what their graphs
offer (:mod:`graphprune.comparison.preference`): two circuits of all edges are at 0, however
different their models. Along an axis whose groups the graphs do not share there is no such number,
and ``absent`` says why. The distance of the whole graphs stands beside it.

Group by group, on one graph, the test looks at the edges that only one of the two circuits has. If
the circuits did not differ, which of these are the first one's would have nothing to do with their
group: the number of them in a group is hypergeometric (``test == "exchange"``, exact). Between
different graphs there is no such pairing: whether the odds of being kept, inside a group against
the other groups that both graphs have, are the same in both models is tested by Woolf's comparison
of log odds ratios with half an edge added to each count (``test == "woolf"``, normal approximation;
Woolf 1955). P-values are two-sided, and adjusted by Holm's method over all groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphprune.comparison.align import same_places
from graphprune.comparison.axes import edge_groups
from graphprune.comparison.counts import holm, hypergeometric
from graphprune.comparison.preference import PreferenceDistance, preference_distance, standardised
from graphprune.comparison.profile import CircuitProfile, ProfileGroup, total_variation, two_sided
from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GroupDifference", "ProfileDifference", "profile_difference"]


@dataclass(frozen=True, kw_only=True)
class GroupDifference:
    """A group in two circuits.

    ``share_first`` and ``share_second`` are plain shares of each circuit's edges;
    ``standard_first`` and ``standard_second`` those on a graph of the mean composition, and
    ``difference`` the first of these minus the second: ``None`` where a graph lacks the group. On
    one graph both kinds are the same. Enrichments are against each circuit's own graph.
    """

    axis: str
    group: str
    share_first: float
    share_second: float
    standard_first: float | None
    standard_second: float | None
    difference: float | None
    enrichment_first: float | None
    enrichment_second: float | None
    test: str
    p: float | None
    p_adjusted: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ProfileDifference:
    """Two profiles, group by group and axis by axis.

    Attributes:
        groups: the groups of all axes.
        axes: what is known along each axis, by name: the distance, corrected for chance with an
            interval and a p-value, and the part of the circuits' edges that it covers.
        absent: axes without a distance, with the reason.
        graph_distance: for every axis half the sum of differences of the graphs' own shares: 0 on
            one graph.
    """

    groups: tuple[GroupDifference, ...]
    axes: Mapping[str, PreferenceDistance]
    absent: Mapping[str, str]
    graph_distance: Mapping[str, float]

    @property
    def distance(self) -> dict[str, float]:
        """Half the sum of differences of standardised shares, along every axis that has it."""
        return {axis: found.distance for axis, found in self.axes.items()}

    @property
    def corrected(self) -> dict[str, float | None]:
        """The distance beyond chance: 0 for equal preferences, 1 for no group in common."""
        return {axis: found.corrected for axis, found in self.axes.items()}

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
            "corrected": dict(self.corrected),
            "graph_distance": dict(self.graph_distance),
            "axes": [dict(found.__dict__) for found in self.axes.values()],
            "absent": dict(self.absent),
            "groups": [dict(group.__dict__) for group in self.groups],
        }


def profile_difference(
    first: CircuitProfile, second: CircuitProfile, *, draws: int = 999, seed: int = 0
) -> ProfileDifference:
    """Axis by axis and group by group, along the axes that both profiles have.

    Args:
        draws: circuits by chance, and resamples for intervals.
        seed: of the draws.

    Raises :class:`InputError` for empty circuits, profiles without a common axis, and profiles
    whose relative depths are divided differently.

    Example:
        >>> from graphprune import ComputationalGraph, circuit_profile
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
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    for profile in (first, second):
        if not profile.mask.num_kept:
            raise InputError("an empty circuit has no shares to compare")
    order = same_places(first.mask.graph, second.mask.graph)
    moved = None
    if order is not None:
        moved = EdgeMask(first.mask.graph, second.mask.values[torch.from_numpy(order)])
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    found: dict[str, PreferenceDistance] = {}
    absent: dict[str, str] = {}
    graph_distance = {}
    for axis in axes:
        ones = {group.group: group for group in first.along(axis)}
        twos = {group.group: group for group in second.along(axis)}
        shared = tuple(name for name in ones if name in twos)
        edges = np.array([[side[name].edges for name in shared] for side in (ones, twos)])
        kept = np.array([[side[name].kept for name in shared] for side in (ones, twos)])
        whole = [{n: g.graph_share for n, g in groups.items()} for groups in (ones, twos)]
        graph_distance[axis] = total_variation(*whole)
        standard: dict[str, tuple[float, float]] = {}
        why = _nothing_to_compare(ones, twos, kept)
        if why is None:
            table = standardised(edges, kept)
            rows_of = zip(shared, table.T.tolist(), strict=True)
            standard = {name: (shares[0], shares[1]) for name, shares in rows_of}
            both = None
            if moved is not None:
                inside = first.mask.kept.numpy() & moved.kept.numpy()
                both = edge_groups(first.mask.graph, axis, bins=first.bins).count(inside)
            found[axis] = preference_distance(
                axis,
                shared,
                edges,
                kept,
                both=both,
                covered=(
                    float(kept[0].sum() / first.mask.num_kept),
                    float(kept[1].sum() / second.mask.num_kept),
                ),
                graph_distance=graph_distance[axis],
                draws=draws,
                generator=generator,
            )
        else:
            absent[axis] = why
        if moved is None:
            p = {name: _woolf(edges[:, i], kept[:, i], edges.sum(1), kept.sum(1))
                 for i, name in enumerate(shared)}  # fmt: skip
        else:
            p = _exchange(first.mask, moved, axis, first.bins)
        for name in dict.fromkeys([*ones, *twos]):
            one, two = ones.get(name), twos.get(name)
            pair = standard.get(name)
            rows.append(
                {
                    "axis": axis,
                    "group": name,
                    "share_first": float(one.share or 0.0) if one else 0.0,
                    "share_second": float(two.share or 0.0) if two else 0.0,
                    "standard_first": pair and pair[0],
                    "standard_second": pair and pair[1],
                    "difference": pair and pair[0] - pair[1],
                    "enrichment_first": one.enrichment if one else None,
                    "enrichment_second": two.enrichment if two else None,
                    "test": "woolf" if moved is None else "exchange",
                    "p": p.get(name),
                }
            )
    adjusted = holm([row["p"] for row in rows])
    over_axes = holm([one.p for one in found.values()])
    return ProfileDifference(
        groups=tuple(
            GroupDifference(**row, p_adjusted=p) for row, p in zip(rows, adjusted, strict=True)
        ),
        axes={
            axis: replace(one, p_adjusted=p)
            for (axis, one), p in zip(found.items(), over_axes, strict=True)
        },
        absent=absent,
        graph_distance=graph_distance,
    )


def _nothing_to_compare(
    ones: Mapping[str, ProfileGroup], twos: Mapping[str, ProfileGroup], kept: Any
) -> str | None:
    """Why two circuits cannot be compared along an axis; ``kept [2, shared groups]``."""
    shared = [name for name in ones if name in twos]
    if not shared:
        return f"no group in common: {', '.join(ones)} in the first, {', '.join(twos)} in the other"
    if len(shared) == 1:
        others = "" if len(ones) == len(twos) == 1 else (
            f" ({', '.join(ones)} in the first, {', '.join(twos)} in the other)"
        )  # fmt: skip
        return f"only the group {shared[0]!r} in common, which leaves nothing to choose{others}"
    for place, side in enumerate(("first", "second")):
        if not kept[place].sum():
            return f"the {side} circuit keeps no edge of the common groups {', '.join(shared)}"
    return None


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


def _woolf(edges: Any, kept: Any, all_edges: Any, all_kept: Any) -> float | None:
    """Woolf's test of one group (``[2]`` each), within the groups that both graphs have."""
    logs, variances = [], []
    for inside, mine, total, ours in zip(edges, kept, all_edges, all_kept, strict=True):
        if inside == total:
            return None
        cells = [mine, inside - mine, ours - mine, total - inside - ours + mine]
        a, b, c, d = (float(cell) + 0.5 for cell in cells)
        logs.append(math.log(a * d / (b * c)))
        variances.append(1 / a + 1 / b + 1 / c + 1 / d)
    z = (logs[0] - logs[1]) / math.sqrt(sum(variances))
    return math.erfc(abs(z) / math.sqrt(2))
