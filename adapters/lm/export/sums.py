"""How readers' inputs are added up with few additions.

An earlier input that keeps nearly the same edges is a better start than nothing: on the whole graph
every input is the one before it and a message, which is the residual stream. Which input starts
from which is a spanning tree, grown place by place (Prim 1957) over the number of edges that
differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..describe.norms import HALF
from .module import ReaderSum, Terms

__all__ = ["SumPlanner"]


@dataclass(frozen=True, eq=False)
class _Planned:
    """A reading, what it keeps ``[slots]`` bool, its constant, and where it stands."""

    reading: ReaderSum
    kept: Tensor
    constant: Tensor
    tail: bool


class SumPlanner:
    """Plans readings in the order they run in.

    Args:
        slots: how many numbers senders may have.
        dtype: of the module.
        last: how many positions outputs are asked at; ``None`` means all.
    """

    def __init__(self, slots: int, dtype: torch.dtype, last: int | None) -> None:
        self.slots, self.dtype, self.last = slots, dtype, last
        self.still = torch.zeros(slots, dtype=torch.bool)
        self.tail = torch.zeros(slots, dtype=torch.bool)
        self._planned: list[_Planned] = []
        # Differences of sums are rounded more often than sums; half precision has no room for it.
        self._differences = dtype not in HALF

    def send(self, slot: int, *, still: bool, tail: bool) -> None:
        """From now on there is a message ``slot``: of a batch of 1, of the last positions."""
        self.still[slot], self.tail[slot] = still, tail

    def read(
        self, kept: Tensor, constants: Tensor, tails: list[bool]
    ) -> list[tuple[int, ReaderSum]]:
        """Readings of one place, in the order to run them in, each with its row.

        ``kept [G, slots]`` bool; ``constants [G, 1 or T, D]`` float64; ``tails [G]``: which are
        wanted at the last positions alone.
        """
        moving = kept & ~self.still
        rows = range(len(kept))
        costs = [
            max(0, int(m.sum()) - 1) + int(bool(s.any()))
            for m, s in zip(moving, kept & self.still, strict=True)
        ]
        starts: list[int | None] = [None for _ in rows]

        def moved(base: _Planned) -> Tensor:
            return (constants != base.constant).flatten(1).any(1).cpu()

        def compare(start: int) -> None:
            base = self._planned[start]
            if not self._differences or not bool((base.kept & ~self.still).any()):
                return
            differs = kept ^ base.kept
            additions = (differs & ~self.still).sum(1)
            additions += (differs & self.still).any(1) | moved(base)
            for row in left:
                if int(additions[row]) < costs[row] and (tails[row] or not base.tail):
                    costs[row], starts[row] = int(additions[row]), start

        left = list(rows)
        for start in range(len(self._planned)):
            compare(start)
        readings = []
        while left:
            row = min(left, key=lambda r: (costs[r], tails[r]))
            left.remove(row)
            readings.append((row, self._make(kept[row], constants[row], tails[row], starts[row])))
            compare(len(self._planned) - 1)
        return readings

    def _make(self, kept: Tensor, constant: Tensor, tail: bool, start: int | None) -> ReaderSum:
        base = None if start is None else self._planned[start]
        before = torch.zeros_like(kept) if base is None else base.kept
        plus = torch.nonzero(kept & ~before)[:, 0].tolist()
        minus = torch.nonzero(before & ~kept)[:, 0].tolist()
        cut = set()
        if tail:
            cut = {n for n in plus + minus if not self.tail[n]}
            if start is not None and base is not None and not base.tail:
                cut.add(~start)
        still = frozenset(n for n in plus + minus if self.still[n])
        added = constant if base is None else constant - base.constant
        if tail and self.last is not None and len(added) > 1:
            added = added[-self.last :]
        added = added.to(self.dtype)
        alone = base is None and not plus
        reading = ReaderSum(
            len(self._planned),
            Terms(start, plus, minus, still, frozenset(cut)),
            added if alone or bool(added.any()) else None,
        )
        if base is not None:
            base.reading.kept = True
        self._planned.append(_Planned(reading, kept, constant, tail))
        return reading

    def finish(self) -> None:
        """Tells readings what nothing reads after them."""
        sent: set[int] = set()
        read: set[int] = set()
        for planned in reversed(self._planned):
            reading, terms = planned.reading, planned.reading.terms
            used = {*terms.plus, *terms.minus}
            reading.done_sent = sorted(used - sent)
            sent |= used
            if terms.base is not None and terms.base not in read:
                reading.done_read = [terms.base]
                read.add(terms.base)
