"""Circuits one inside the next, each corrected by a few swaps until a measured value is its goal.

From the largest size down: the best edges of the last circuit by a ranking, then rounds of swaps.
A round asks for the value's slope at the circuit, so that each absent edge of the last circuit and
each kept edge has an estimate of what taking it in or out would do. Swaps whose estimates close the
gap are measured; what they really did says how many times as many, or which part of them, to try
next. The first circuit that halves the gap is taken, else the nearest to the goal. Where none is
nearer than before, the size is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.util.progress import track

__all__ = ["NestedCircuit", "nested_circuits"]

_TRIALS = 4  # circuits of either kind measured in a round
_STRETCH = 4.0  # the most that one trial's share of the gap differs from the last one's


@dataclass(frozen=True, eq=False)
class NestedCircuit:
    """The circuit of one size.

    Args:
        kept: ``[E]`` bool.
        before: its value as the ranking gave it, inside the next larger circuit.
        value: its value after the swaps.
        swaps: how many edges were exchanged.
        rounds: how many slopes were asked for.
    """

    kept: Tensor
    before: float
    value: float
    swaps: int
    rounds: int

    @property
    def count(self) -> int:
        """Edges kept."""
        return int(self.kept.sum())


def nested_circuits(
    strengths: Tensor,
    counts: Sequence[int],
    measure: Callable[[Tensor], float],
    slope: Callable[[Tensor], Tensor],
    *,
    goal: float = 1.0,
    tolerance: float = 0.01,
    rounds: int = 4,
) -> list[NestedCircuit]:
    """The circuits, the largest first.

    Args:
        strengths: ``[E]``: the ranking to begin with, from 0 on; equal ones go by edge number.
        counts: sizes, in any order, each below E.
        measure: the value of a circuit ``[E]`` bool.
        slope: its derivative by the mask at a circuit, ``[E]``.
        goal: the value wanted of every circuit.
        tolerance: a gap that is small enough.
        rounds: slopes asked for at most, each size.

    Example:
        >>> effects = torch.tensor([0.6, 0.3, -0.1, 0.1, 0.3])  # a value that is their sum
        >>> value, slope = lambda kept: float(effects[kept].sum()), lambda kept: effects
        >>> (step,) = nested_circuits(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), [3], value, slope)
        >>> step.kept.tolist(), round(step.before, 2), round(step.value, 2), step.swaps
        ([True, True, False, True, False], 0.8, 1.0, 1)
    """
    order = torch.sort(strengths, descending=True, stable=True).indices
    outer = torch.ones(len(strengths), dtype=torch.bool)
    circuits: list[NestedCircuit] = []
    for count in track(sorted(set(counts), reverse=True), "sizes"):
        first = torch.zeros_like(outer)
        first[order[outer[order]][:count]] = True
        kept, value = first, measure(first)
        before, asked = value, 0
        while asked < rounds and abs(goal - value) > tolerance:
            swaps = _Swaps(kept, outer, slope(kept), strengths, goal - value)
            asked += 1
            better, value = _nearest(swaps, measure, value, goal, tolerance)
            if better is kept:
                break
            kept = better
        circuits.append(NestedCircuit(kept, before, value, int((kept & ~first).sum()), asked))
        outer = kept
    return circuits


class _Swaps:
    """Exchanges of edges inside ``outer``, by what a slope says they would do.

    Args:
        gap: what the circuit's value lacks of its goal, with its sign.
    """

    def __init__(
        self, kept: Tensor, outer: Tensor, slope: Tensor, strengths: Tensor, gap: float
    ) -> None:
        self.kept, self._gap = kept, abs(gap)
        self._gain = slope.double() * (1.0 if gap > 0 else -1.0)  # of taking in, towards the goal
        into, out = torch.nonzero(outer & ~kept)[:, 0], torch.nonzero(kept)[:, 0]
        gain, strength = self._gain, strengths.double()
        self._into = _sorted(into[gain[into] > 0], -gain)
        self._harmful = _sorted(out[gain[out] < 0], gain)
        self._idle = _sorted(out[gain[out] <= 0], strength)
        self._helpful = _sorted(out[gain[out] > 0], gain)

    def circuit(self, share: float, *, idle: bool) -> tuple[Tensor, float]:
        """The circuit after swaps whose estimates close ``share`` of the gap, or all there are.

        The second value is the share that they do close by their estimates.

        No edge that would close more alone is in them, unless there is no other. The first to
        leave are the weakest of those that do not help (``idle``) or the most harmful; those that
        help follow, the least first, as long as what enters helps more.
        """
        limit, gain = share * self._gap, self._gain
        enter = _fitting(self._into, gain, limit)
        first = self._idle if idle else _fitting(self._harmful, -gain, limit)
        leave = torch.cat([first, self._helpful])
        pairs = min(len(enter), len(leave), max(1, int(self.kept.sum()) // 4))
        net = gain[enter[:pairs]] - gain[leave[:pairs]]
        net = net[: int((net > 0).long().cumprod(0).sum())]
        number = min(len(net), int((net.cumsum(0) < limit).sum()) + 1)
        kept = self.kept.clone()
        kept[leave[:number]] = False
        kept[enter[:number]] = True
        return kept, float(net[:number].sum()) / self._gap


def _nearest(
    swaps: _Swaps, measure: Callable[[Tensor], float], value: float, goal: float, tolerance: float
) -> tuple[Tensor, float]:
    """The first circuit that halves the gap, else the nearest; the old one if none is nearer."""
    gap = goal - value
    best, known = (swaps.kept, value), {swaps.kept.numpy().tobytes()}
    for idle in (True, False):
        share = 1.0
        for _ in range(_TRIALS):
            kept, estimated = swaps.circuit(share, idle=idle)
            key = kept.numpy().tobytes()
            if key in known:
                break
            known.add(key)
            seen = measure(kept)
            if abs(goal - seen) < abs(goal - best[1]):
                best = (kept, seen)
            if abs(goal - seen) <= max(tolerance, abs(gap) / 2):
                return best
            closed = (seen - value) / gap
            wanted = min(_STRETCH, max(1 / closed, 1 / _STRETCH)) if closed > 0 else 1 / _STRETCH
            share = wanted * min(share, estimated)
    return best


def _sorted(edges: Tensor, by: Tensor) -> Tensor:
    return edges[by[edges].sort(stable=True).indices]


def _fitting(edges: Tensor, gain: Tensor, limit: float) -> Tensor:
    """Those that do not go past ``limit`` alone; else the one that goes the least past it."""
    gains = gain[edges]
    fitting = edges[gains <= limit]
    return fitting if len(fitting) else edges[gains.argsort()[:1]]
