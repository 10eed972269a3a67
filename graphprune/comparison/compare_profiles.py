"""Profiles of several circuits side by side, on one graph or on graphs of different models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from graphprune.comparison.alignment import edge_positions, mask_of, require_named
from graphprune.comparison.edge_groups import levels, usable_axes
from graphprune.comparison.p_values import holm
from graphprune.comparison.profile import (
    PROFILE_AXES,
    CircuitProfile,
    circuit_profile,
    profile_difference,
)
from graphprune.comparison.profile_difference import ProfileDifference
from graphprune.core.circuit import Circuit
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


RELATIVE_AXES = ("source_depth", "target_depth", "source_kind", "target_kind", "kind")
"""Axes that mean the same in models of different depth and width."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProfileComparison:
    """Profiles of several circuits and the difference of each pair.

    ``same_graph`` says whether all lie on one graph; ``left_out`` names axes that some graph does
    not have, with the reason; ``bins`` is how many parts a relative depth has; ``remarks`` are what
    to keep in mind when reading the figures.

    Example:
        >>> two = {
        ...     "EAP": gp.EAP().score(lm, prompts).top(40),
        ...     "random": gp.Random().score(lm, prompts).top(40),
        ... }
        >>> comparison = gp.compare_profiles(two)
        >>> comparison.differences["EAP", "random"].distance["kind"]
        0.2
    """

    profiles: Mapping[str, CircuitProfile]
    differences: Mapping[tuple[str, str], ProfileDifference]
    axes: tuple[str, ...]
    same_graph: bool
    left_out: Mapping[str, str]
    bins: int
    remarks: tuple[str, ...] = ()

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
            for (first, second), difference in self.differences.items()
            for group in difference.groups
        ]
        return pd.DataFrame(rows)

    def distances_frame(self) -> pd.DataFrame:
        """A row for each pair and axis: distances, intervals, p-values, or why there are none."""
        import pandas as pd

        rows = []
        for (first, second), difference in self.differences.items():
            for axis, whole in difference.graph_distance.items():
                row: dict[str, Any] = {"first": first, "second": second, "axis": axis}
                if axis in difference.axes:
                    row |= difference.axes[axis].__dict__ | {
                        "groups": len(difference.axes[axis].groups)
                    }
                else:
                    row |= {"graph_distance": whole, "absent": difference.absent[axis]}
                rows.append(row)
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "axes": list(self.axes),
            "bins": self.bins,
            "remarks": list(self.remarks),
            "same_graph": self.same_graph,
            "left_out": dict(self.left_out),
            "profiles": {name: p.to_dict() for name, p in self.profiles.items()},
            "differences": [
                {"first": first, "second": second, **difference.to_dict()}
                for (first, second), difference in self.differences.items()
            ],
        }

    def plot(self, path: Any = None) -> Any:
        """A panel an axis, a colour a circuit; gives the figure.

        Shares by group on one graph; on several how many times as often as by chance.
        """
        from graphprune.drawing.comparisons import plot_profiles

        return plot_profiles(self.profiles, path=path, enrichment=not self.same_graph)


def compare_profiles(
    circuits: Mapping[str, Circuit | EdgeMask],
    axes: Sequence[str] | None = None,
    *,
    bins: int | None = None,
    draws: int = 999,
    seed: int = 0,
) -> ProfileComparison:
    """The profiles of several circuits, on one graph or on graphs of different models.

    Distances between circuits are of what they chose, corrected for what their graphs offer and
    for chance; see :mod:`graphprune.comparison.preference_distance`.

    Args:
        circuits: at least two, by name.
        axes: ``None`` takes levels, distances and kinds on one graph; relative depth and kinds on
            several, in which levels would not mean the same.
        bins: parts of a relative depth; ``None`` means four, or as many as the shallowest graph has
            levels, so that no part is missing in it.
        draws: circuits by chance, and resamples for intervals.
        seed: of the draws.

    Pairs with an empty circuit have no difference. Raises :class:`InputError` as
    :func:`circuit_profile` does.

    Example:
        >>> from graphprune import ComputationalGraph
        >>> short = ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
        >>> long = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")])
        >>> early = {"short": EdgeMask(short, [1, 0]), "long": EdgeMask(long, [1, 1, 0, 0])}
        >>> difference = compare_profiles(early, bins=2).differences["short", "long"]
        >>> difference.distance["source_depth"], difference.absent["kind"]
        (0.0, "only the group 'message' in common, which leaves nothing to choose")
    """
    require_named(circuits)
    masks = {name: mask_of(thing, name) for name, thing in circuits.items()}
    base = next(iter(masks.values())).graph
    same = all(edge_positions(base, mask.graph) is not None for mask in masks.values())
    default = PROFILE_AXES if same else RELATIVE_AXES
    left_out: dict[str, str] = {}
    for name, mask in masks.items():
        _, missing = usable_axes(mask.graph, axes, default)
        left_out |= {axis: f"{name}: {why}" for axis, why in missing.items()}
    used = tuple(axis for axis in (default if axes is None else axes) if axis not in left_out)
    if bins is None:
        bins = min(4, *(_depth(mask.graph) for mask in masks.values()))
    profiles = {name: circuit_profile(mask, used, bins=bins) for name, mask in masks.items()}
    differences = {
        (first, second): profile_difference(
            profiles[first], profiles[second], draws=draws, seed=seed
        )
        for first, second in combinations(masks, 2)
        if masks[first].num_kept and masks[second].num_kept
    }
    return ProfileComparison(
        profiles=profiles,
        differences=differences,
        axes=used,
        same_graph=same,
        left_out=left_out,
        bins=bins,
        remarks=_remarks(differences, profiles),
    )


def _depth(graph: ComputationalGraph) -> int:
    """The number of levels of the graph; where it has none 4, the most that is needed."""
    try:
        low, high = levels(graph).span
    except InputError:
        return 4
    return high - low + 1


def _remarks(
    differences: Mapping[tuple[str, str], ProfileDifference], profiles: Mapping[str, CircuitProfile]
) -> tuple[str, ...]:
    remarks = []
    words = {name: profile.level for name, profile in profiles.items() if profile.level}
    if len(set(words.values())) > 1:
        each = ", ".join(f"{word} in {name}" for name, word in words.items())
        remarks.append(f"depth is not measured alike: {each}")
    for (first, second), difference in differences.items():
        least = holm([one.least_p for one in difference.axes.values()])
        weak = [axis for axis, p in zip(difference.axes, least, strict=True) if p > 0.05]
        if weak:
            remarks.append(
                f"{first} and {second}: underpowered along {', '.join(weak)}: no difference, "
                "however large, could have p below 0.05 (too few edges or draws)"
            )
        partly = [
            f"{axis} ({one.covered_first:.0%} and {one.covered_second:.0%} of the edges)"
            for axis, one in difference.axes.items()
            if min(one.covered_first, one.covered_second) < 0.995
        ]
        if partly:
            remarks.append(
                f"{first} and {second} are compared within the groups that both graphs have: "
                f"{', '.join(partly)}"
            )
    return tuple(remarks)
