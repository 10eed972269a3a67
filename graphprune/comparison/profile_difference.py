"""Two circuits' profiles beside each other: what is known of each group and of each axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune.comparison.preference_distance import PreferenceDistance
from graphprune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class GroupDifference:
    """A group in two circuits.

    ``share_first`` and ``share_second`` are plain shares of each circuit's edges;
    ``standard_first`` and ``standard_second`` those on a graph of the mean composition, and
    ``difference`` the first of these minus the second: ``None`` where a graph lacks the group. On
    one graph both kinds are the same. Enrichments are against each circuit's own graph.

    Example:
        >>> first, second = (
        ...     gp.circuit_profile(m.score(lm, prompts).top(40)) for m in (gp.EAP(), gp.Random())
        ... )
        >>> group = first.difference(second).groups[0]
        >>> group.axis, group.group, group.share_first, group.share_second
        ('source_level', 'input', 0.225, 0.275)
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
    p_adjusted: float | None = None


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

    Example:
        >>> first, second = (
        ...     gp.circuit_profile(m.score(lm, prompts).top(40)) for m in (gp.EAP(), gp.Random())
        ... )
        >>> first.difference(second).distance["kind"]
        0.2
    """

    groups: tuple[GroupDifference, ...]
    axes: Mapping[str, PreferenceDistance]
    absent: Mapping[str, str]
    graph_distance: Mapping[str, float]

    @property
    def distance(self) -> dict[str, float]:
        """Half the sum of differences of standardised shares, along every axis that has it."""
        return {axis: one.distance for axis, one in self.axes.items()}

    @property
    def corrected(self) -> dict[str, float | None]:
        """The distance beyond chance: 0 for equal preferences, 1 for no group in common."""
        return {axis: one.corrected for axis, one in self.axes.items()}

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
            "axes": [dict(vars(one)) for one in self.axes.values()],
            "absent": dict(self.absent),
            "groups": [dict(group.__dict__) for group in self.groups],
        }
