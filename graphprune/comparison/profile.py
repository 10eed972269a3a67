"""The profile of a circuit: where its edges lie, against the graph's; and two such profiles.

Each axis divides all edges into groups (:mod:`graphprune.comparison.edge_groups`). A group's
*share* is its part of the kept edges, *enrichment* that share over the group's part of all edges:
1 is what random edges give, 2 twice as many. The p-value is that of a random set of as many edges
(hypergeometric, twice the smaller tail), adjusted by Holm's method over all groups of all axes.

How far apart two circuits are along an axis is measured by what they chose of what their graphs
offer (:mod:`graphprune.comparison.preference_distance`): two circuits of all edges are at 0,
however different their models. Along an axis whose groups the graphs do not share there is no such
number, and ``absent`` says why. The distance of the whole graphs stands beside it.

Group by group a test says whether the circuits differ (:mod:`graphprune.comparison.group_tests`):
``"exchange"`` on one graph, ``"woolf"`` between two, adjusted by Holm's method over all groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphprune.comparison.alignment import edge_positions, mask_of
from graphprune.comparison.count_distribution import hypergeometric
from graphprune.comparison.edge_groups import edge_groups, levels, usable_axes
from graphprune.comparison.group_tests import exchange_test, two_sided, woolf_test
from graphprune.comparison.p_values import holm
from graphprune.comparison.preference_distance import (
    PreferenceDistance,
    preference_distance,
    standardised,
)
from graphprune.comparison.profile_difference import GroupDifference, ProfileDifference
from graphprune.core.circuit import Circuit
from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


PROFILE_AXES = ("source_level", "target_level", "distance", "source_kind", "target_kind", "kind")


@dataclass(frozen=True, kw_only=True)
class ProfileGroup:
    """One group of edges: how many there are, how many are kept, and whether that is chance.

    ``share`` and ``enrichment`` are ``None`` for an empty circuit; ``p`` where chance leaves
    nothing open (an axis with one group, a circuit of no edge or of all).

    Example:
        >>> profile = gp.circuit_profile(gp.EAP().score(lm, prompts).top(40))
        >>> group = profile.along("kind")[0]
        >>> group.group, group.kept, group.edges, group.enrichment
        ('q', 3, 28, 0.295)
    """

    axis: str
    group: str
    kept: int
    edges: int
    share: float | None
    graph_share: float
    enrichment: float | None
    p: float | None
    p_adjusted: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitProfile:
    """The groups of a circuit's edges along some axes.

    Attributes:
        mask: the circuit.
        groups: all groups, axis after axis.
        axes: the axes; ``left_out`` names those that the graph does not have, with the reason.
        level: what a level is here: ``"layer"``, ``"depth"``, ``"steps"``, or ``None``.
        bins: how many parts a relative depth is divided into.

    Example:
        >>> profile = gp.circuit_profile(gp.EAP().score(lm, prompts).top(40))
        >>> profile.axes
        ('source_level', 'target_level', 'distance', 'source_kind', 'target_kind', 'kind')
        >>> [(group.group, group.kept) for group in profile.along("kind")]
        [('q', 3), ('k', 7), ('v', 12), ('mlp', 10), ('resid', 8)]
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
    """The spread of a circuit's edges over layers, kinds and distances.

    Args:
        circuit: a circuit or a mask; its kept edges count.
        axes: some of :data:`graphprune.comparison.AXES`; ``None`` takes levels of both ends,
            distance, kinds of both ends and kind of edge, as far as the graph has them.
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
    groups: list[ProfileGroup] = []
    for axis in used:
        division = edge_groups(graph, axis, bins=bins)
        counts = (division.count(kept).tolist(), division.count().tolist())
        for name, inside, size in zip(division.names, *counts, strict=True):
            share, graph_share = inside / max(number, 1), size / total
            groups.append(
                ProfileGroup(
                    axis=axis,
                    group=name,
                    kept=inside,
                    edges=size,
                    share=share if number else None,
                    graph_share=graph_share,
                    enrichment=share / graph_share if number else None,
                    p=two_sided(hypergeometric(total, size, number), inside),
                )
            )
    adjusted = holm([group.p for group in groups])
    has_levels = any(axis.endswith(("_level", "_depth")) or axis == "distance" for axis in used)
    return CircuitProfile(
        mask=mask,
        groups=tuple(replace(g, p_adjusted=p) for g, p in zip(groups, adjusted, strict=True)),
        axes=used,
        left_out=left_out,
        level=levels(graph).how if has_levels else None,
        bins=bins,
    )


# -------------------------------------------------------------------- two profiles


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
        >>> difference = profile_difference(circuit_profile(early), circuit_profile(late))
        >>> difference.distance["target_level"], round(difference.group("target_level", "1").p, 4)
        (1.0, 0.3333)
    """
    axes = [axis for axis in first.axes if axis in second.axes]
    if not axes:
        raise InputError(f"the profiles have no axis in common: {first.axes}, {second.axes}")
    if first.bins != second.bins:
        raise InputError(f"the profiles divide depth into {first.bins} and {second.bins} parts")
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    if not (first.mask.num_kept and second.mask.num_kept):
        raise InputError("an empty circuit has no shares to compare")
    order = edge_positions(first.mask.graph, second.mask.graph)
    aligned = None  # the second circuit on the first one's graph
    if order is not None:
        aligned = EdgeMask(first.mask.graph, second.mask.values[torch.from_numpy(order)])
    generator = np.random.default_rng(seed)
    groups: list[GroupDifference] = []
    distances: dict[str, PreferenceDistance] = {}
    absent: dict[str, str] = {}
    graph_distance: dict[str, float] = {}
    for axis in axes:
        ones, twos = ({g.group: g for g in profile.along(axis)} for profile in (first, second))
        every, common = tuple({**ones, **twos}), tuple(name for name in ones if name in twos)
        edges, kept = (
            np.array([[getattr(side[name], count) for name in common] for side in (ones, twos)])
            for count in ("edges", "kept")
        )
        gaps = [_graph_share(ones, name) - _graph_share(twos, name) for name in every]
        graph_distance[axis] = float(np.abs(gaps).sum()) / 2
        standard: dict[str, tuple[float, float]] = {}
        division = edge_groups(first.mask.graph, axis, bins=first.bins)
        why = _nothing_to_compare(ones, twos, kept)
        if why is not None:
            absent[axis] = why
        else:
            shares_of = zip(common, standardised(edges, kept).T.tolist(), strict=True)
            standard = {name: (one, two) for name, (one, two) in shares_of}
            both = None
            if aligned is not None:
                both = division.count(first.mask.kept.numpy() & aligned.kept.numpy())
            covered = kept.sum(1) / [first.mask.num_kept, second.mask.num_kept]
            distances[axis] = preference_distance(
                axis,
                common,
                edges,
                kept,
                both=both,
                covered=tuple(covered.tolist()),
                graph_distance=graph_distance[axis],
                draws=draws,
                generator=generator,
            )
        if aligned is None:
            p_values = dict(zip(common, woolf_test(edges, kept), strict=True))
        else:
            p_values = exchange_test(first.mask, aligned, division)
        for name in every:
            one, two = ones.get(name), twos.get(name)
            shares = standard.get(name)
            groups.append(
                GroupDifference(
                    axis=axis,
                    group=name,
                    share_first=float(one.share or 0.0) if one else 0.0,
                    share_second=float(two.share or 0.0) if two else 0.0,
                    standard_first=shares and shares[0],
                    standard_second=shares and shares[1],
                    difference=shares and shares[0] - shares[1],
                    enrichment_first=one.enrichment if one else None,
                    enrichment_second=two.enrichment if two else None,
                    test="woolf" if aligned is None else "exchange",
                    p=p_values.get(name),
                )
            )
    adjusted = holm([group.p for group in groups])
    over_axes = zip(distances.items(), holm([one.p for one in distances.values()]), strict=True)
    return ProfileDifference(
        groups=tuple(replace(g, p_adjusted=p) for g, p in zip(groups, adjusted, strict=True)),
        axes={axis: replace(one, p_adjusted=p) for (axis, one), p in over_axes},
        absent=absent,
        graph_distance=graph_distance,
    )


def _graph_share(groups: Mapping[str, ProfileGroup], name: str) -> float:
    return groups[name].graph_share if name in groups else 0.0


def _nothing_to_compare(
    ones: Mapping[str, ProfileGroup], twos: Mapping[str, ProfileGroup], kept: NDArray[np.int64]
) -> str | None:
    """Why two circuits cannot be compared along an axis; ``kept [2, common groups]``."""
    common = [name for name in ones if name in twos]
    each = f"{', '.join(ones)} in the first, {', '.join(twos)} in the other"
    if not common:
        return f"no group in common: {each}"
    if len(common) == 1:
        others = "" if len(ones) == len(twos) == 1 else f" ({each})"
        return f"only the group {common[0]!r} in common, which leaves nothing to choose{others}"
    for side, total in zip(("first", "second"), kept.sum(1), strict=True):
        if not total:
            return f"the {side} circuit keeps no edge of the common groups {', '.join(common)}"
    return None
