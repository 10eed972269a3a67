"""Where a circuit's edges lie, against where the graph's edges lie.

Each axis divides all edges into groups (:mod:`graphprune.comparison.axes`). A group's *share* is
its part of the kept edges, *enrichment* that share over the group's part of all edges: 1 is what
random edges give, 2 twice as many. The p-value is that of a random set of as many edges
(hypergeometric, twice the smaller tail), adjusted by Holm's method over all groups of all axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.comparison.align import mask_of
from graphprune.comparison.axes import edge_groups, levels, usable_axes
from graphprune.comparison.counts import CountDistribution, holm, hypergeometric
from graphprune.core.circuit import Circuit
from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from graphprune.comparison.profile_difference import ProfileDifference

__all__ = ["PROFILE_AXES", "CircuitProfile", "ProfileGroup", "circuit_profile", "two_sided"]

PROFILE_AXES = ("source_level", "target_level", "distance", "source_kind", "target_kind", "kind")


@dataclass(frozen=True, kw_only=True)
class ProfileGroup:
    """One group of edges: how many there are, how many are kept, and whether that is chance.

    ``share`` and ``enrichment`` are ``None`` for an empty circuit; ``p`` where chance leaves
    nothing open (an axis with one group, a circuit of no edge or of all).
    """

    axis: str
    group: str
    kept: int
    edges: int
    share: float | None
    graph_share: float
    enrichment: float | None
    p: float | None
    p_adjusted: float | None


def two_sided(chance: CountDistribution, found: int) -> float | None:
    """Twice the smaller tail, at most 1; ``None`` where only one count is possible.

    Example:
        >>> round(two_sided(hypergeometric(4, 2, 2), 2), 4)
        0.3333
    """
    if len(chance.pmf) == 1:
        return None
    return min(1.0, 2 * min(chance.at_least(found), chance.at_most(found)))


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitProfile:
    """The groups of a circuit's edges along some axes.

    Attributes:
        mask: the circuit.
        groups: all groups, axis after axis.
        axes: the axes; ``left_out`` names those that the graph does not have, with the reason.
        level: what a level is here: ``"layer"``, ``"depth"``, ``"steps"``, or ``None``.
        bins: how many parts a relative depth is divided into.
    """

    mask: EdgeMask
    groups: tuple[ProfileGroup, ...]
    axes: tuple[str, ...]
    left_out: Mapping[str, str]
    level: str | None
    bins: int

    def along(self, axis: str) -> tuple[ProfileGroup, ...]:
        """The groups of one axis."""
        if axis not in self.axes:
            why = self.left_out.get(axis, f"axes: {', '.join(self.axes)}")
            raise InputError(f"this profile has no axis {axis!r}: {why}")
        return tuple(group for group in self.groups if group.axis == axis)

    def group(self, axis: str, name: str) -> ProfileGroup:
        """One group by name."""
        for group in self.along(axis):
            if group.group == name:
                return group
        known = ", ".join(group.group for group in self.along(axis))
        raise InputError(f"the axis {axis!r} has no group {name!r}; groups: {known}")

    def difference(self, other: CircuitProfile) -> ProfileDifference:
        """This profile beside another, group by group, with a test of each difference."""
        from graphprune.comparison.profile_difference import profile_difference

        return profile_difference(self, other)

    def to_frame(self) -> pd.DataFrame:
        """A row for each group."""
        import pandas as pd

        return pd.DataFrame([dict(group.__dict__) for group in self.groups])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the mask as plain values."""
        return {
            "kept": self.mask.num_kept,
            "edges": self.mask.graph.num_edges,
            "level": self.level,
            "bins": self.bins,
            "left_out": dict(self.left_out),
            "groups": [dict(group.__dict__) for group in self.groups],
        }

    def plot(self, path: Any = None) -> Any:
        """Shares by group, a panel an axis, beside the graph's; gives the figure."""
        from graphprune.drawing.comparisons import plot_profiles

        return plot_profiles({"circuit": self}, path=path)

    def __repr__(self) -> str:
        return f"CircuitProfile({self.mask.num_kept} edges; {', '.join(self.axes)})"


def circuit_profile(
    circuit: Circuit | EdgeMask, axes: Sequence[str] | None = None, *, bins: int = 4
) -> CircuitProfile:
    """How a circuit's edges are spread over layers, kinds and distances.

    Args:
        circuit: a circuit or a mask; its kept edges count.
        axes: some of :data:`graphprune.comparison.AXES`; ``None``: levels of both ends, distance,
            kinds of both ends and kind of edge, as far as the graph has them.
        bins: parts of a relative depth.

    Raises :class:`InputError` for an unknown axis, or one asked for that the graph does not have.

    Example:
        >>> from graphprune import ComputationalGraph
        >>> graph = ComputationalGraph.from_edges(
        ...     [("in", "a"), ("in", "b"), ("a", "out"), ("b", "out")])
        >>> profile = circuit_profile(EdgeMask(graph, [1, 1, 0, 0]))
        >>> profile.level, profile.group("target_level", "1").enrichment
        ('depth', 2.0)
        >>> round(profile.group("target_level", "1").p, 4)  # 1 of 6 pairs of edges, both tails
        0.3333
    """
    mask = mask_of(circuit, "the profile")
    graph, kept = mask.graph, mask.kept.numpy()
    used, left_out = usable_axes(graph, axes, PROFILE_AXES)
    number, total = mask.num_kept, graph.num_edges
    rows: list[dict[str, Any]] = []
    for axis in used:
        division = edge_groups(graph, axis, bins=bins)
        pairs = zip(division.names, division.count(kept), division.count(), strict=True)
        for name, inside, size in pairs:
            share, of_graph = int(inside) / max(number, 1), int(size) / total
            rows.append(
                {
                    "axis": axis,
                    "group": name,
                    "kept": int(inside),
                    "edges": int(size),
                    "share": share if number else None,
                    "graph_share": of_graph,
                    "enrichment": share / of_graph if number else None,
                    "p": two_sided(hypergeometric(total, int(size), number), int(inside)),
                }
            )
    adjusted = holm([row["p"] for row in rows])
    leveled = bool({"source_level", "target_level", "distance"}.intersection(used)) or any(
        axis.endswith("_depth") for axis in used
    )
    return CircuitProfile(
        mask=mask,
        groups=tuple(
            ProfileGroup(**row, p_adjusted=p) for row, p in zip(rows, adjusted, strict=True)
        ),
        axes=used,
        left_out=left_out,
        level=levels(graph).how if leveled else None,
        bins=bins,
    )


def total_variation(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Half the sum of differences of two sets of shares: 0 for the same, 1 for nothing in common.

    Example:
        >>> total_variation({"q": 0.5, "k": 0.5}, {"q": 1.0})
        0.5
    """
    names = {*first, *second}
    return float(np.sum([abs(first.get(n, 0.0) - second.get(n, 0.0)) for n in names])) / 2
