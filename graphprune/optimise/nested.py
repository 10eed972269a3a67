"""Circuits one inside the next, each corrected by a few swaps until a measured value is its goal.

From the largest size down: the best edges of the last circuit by a ranking, then rounds of swaps.
A round asks for the value's slope at the circuit, so that each absent edge of the last circuit and
each kept edge has an estimate of what taking it in or out would do. It proposes sets of swaps whose
estimates close the gap (or a half or twice of it: estimates are of first order), without edges that
would overshoot alone, and measures them: the first that halves the gap is taken, else the nearest
to the goal. Where none is nearer than before, the size is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.progress import track

__all__ = ["Step", "nested"]

_SHARES = (1.0, 0.5, 2.0)  # of the gap that a proposal's estimates close, first tried first


@dataclass(frozen=True, eq=False)
class Step:
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


def nested(
    strengths: Tensor,
    counts: Sequence[int],
    measure: Callable[[Tensor], float],
    slope: Callable[[Tensor], Tensor],
    *,
    goal: float = 1.0,
    tolerance: float = 0.01,
    rounds: int = 4,
) -> list[Step]:
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
        >>> (step,) = nested(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), [3], value, slope)
        >>> step.kept.tolist(), round(step.before, 2), round(step.value, 2), step.swaps
        ([True, True, False, True, False], 0.8, 1.0, 1)
    """
    order = torch.sort(strengths, descending=True, stable=True).indices
    outer = torch.ones(len(strengths), dtype=torch.bool)
    found: list[Step] = []
    for count in track(sorted(set(counts), reverse=True), "sizes"):
        kept = torch.zeros_like(outer)
        kept[order[outer[order]][:count]] = True
        first = kept
        before = value = measure(kept)
        asked = 0
        while asked < rounds and abs(goal - value) > tolerance:
            gradient = slope(kept)
            asked += 1
            best, good = (value, kept), max(tolerance, abs(goal - value) / 2)
            for other in _proposals(kept, outer, gradient, strengths, goal - value):
                seen = measure(other)
                if abs(goal - seen) < abs(goal - best[0]):
                    best = (seen, other)
                if abs(goal - seen) <= good:
                    break
            if best[1] is kept:
                break
            value, kept = best
        swaps = int((kept & ~first).sum())
        found.append(Step(kept, before, value, swaps, asked))
        outer = kept
    return found


def _proposals(
    kept: Tensor, outer: Tensor, gradient: Tensor, strengths: Tensor, gap: float
) -> Iterator[Tensor]:
    """Circuits of as many edges inside ``outer``, each once."""
    gain = gradient.double() * (1.0 if gap > 0 else -1.0)  # of taking an edge in, towards the goal
    size = abs(gap)
    into, out = torch.nonzero(outer & ~kept)[:, 0], torch.nonzero(kept)[:, 0]
    most = min(len(into), max(1, len(out) // 4))
    idle = out[gain[out] <= 0]  # none of them helps; the weakest first
    idle = idle[strengths[idle].sort(stable=True).indices]
    seen: set[bytes] = set()
    for share in _SHARES:
        limit = share * size
        enter = _fitting(gain[into], into, limit)
        for leave in (idle, _fitting(-gain[out], out, limit)):
            pairs = min(len(enter), len(leave), most)
            if not pairs:
                continue
            total = (gain[enter[:pairs]] - gain[leave[:pairs]]).cumsum(0)
            reached = torch.nonzero(total >= limit)[:, 0]
            number = int(reached[0]) + 1 if len(reached) else pairs
            other = kept.clone()
            other[leave[:number]] = False
            other[enter[:number]] = True
            key = other.numpy().tobytes()
            if key not in seen:
                seen.add(key)
                yield other


def _fitting(gains: Tensor, edges: Tensor, limit: float) -> Tensor:
    """Edges with a gain, the largest first that does not go past ``limit``; else the smallest."""
    helps = gains > 0
    fitting = helps & (gains <= limit)
    if bool(fitting.any()):
        return edges[fitting][gains[fitting].sort(descending=True, stable=True).indices]
    return edges[helps][gains[helps].sort(stable=True).indices][:1]
