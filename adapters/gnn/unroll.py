"""A run of a recurrent network written out: one row for each state that has to be computed.

The states of a run are numbered once and for all, step after step. A row reads rows before it, so
nothing is ever overwritten, and three savings are exact:

- A state that no wanted state reads, directly or through others, gets no row.
- A state whose sources have not changed since its node was last computed is the row that it was.
  Nodes that receive nothing, or only from nodes at rest, become constants in this way.
- A state that reads nothing, under an activation that keeps zero, is zero: no row, and no edge.

What a node receives of clamped inputs, its bias and a constant drive is the same in all steps;
where there are several they are summed once, in a row of their own. Rows of one *wave* do not read
each other and are computed together.

Rows come in this order: zeros, ones, inputs, first states, drives, sums of constants, states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .wiring import Flags, Numbers, Wiring

__all__ = ["UnrolledRun", "Wave", "unroll"]

ZEROS, ONES = 0, 1
_ABSENT = -1  # in place of a row: the state is zero


@dataclass(frozen=True)
class Wave:
    """Computed rows ``start`` to ``stop``; those from ``middle`` on have the outputs' activation.

    ``is_sum``: they are sums as they are, without an activation.
    """

    start: int
    middle: int
    stop: int
    is_sum: bool = False


@dataclass(frozen=True, eq=False)
class UnrolledRun:
    """The rows of a run.

    Computed row i, row ``leaves + i`` of all, is the activation of the sum, over j from
    ``offsets[i]`` to ``offsets[i + 1]``, of ``factors[factor[j]] * rows[source[j]]``. Factors are
    the weights of the edges, the biases of the nodes (where there are), and 1.

    Args:
        leaves: how many rows are given.
        offsets, source, factor: see above.
        waves: which rows are computed together, in order.
        output: the rows of the wanted states.
        one: the number of the factor 1.
    """

    leaves: int
    offsets: Numbers
    source: Numbers
    factor: Numbers
    waves: tuple[Wave, ...]
    output: Numbers
    one: int

    @property
    def computed(self) -> int:
        """How many rows are computed."""
        return len(self.offsets) - 1

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.leaves + self.computed

    @cached_property
    def readers(self) -> tuple[Numbers, Numbers, Numbers]:
        """By source: offsets ``[rows + 1]``, and for each reading its reader and its factor.

        A reader is the number of a wanted state, or behind those that of a computed row.
        """
        from scipy.sparse import csr_array

        wanted = len(self.output)
        source = np.concatenate([self.output, self.source])
        factor = np.concatenate([np.full(wanted, self.one), self.factor])
        offsets = np.concatenate([np.arange(wanted), wanted + self.offsets])
        shape = (len(offsets) - 1, self.rows)
        by_source: Any = csr_array((np.arange(len(source)), source, offsets), shape=shape).tocsc()
        return by_source.indptr, by_source.indices, factor[by_source.data]


def unroll(
    wiring: Wiring,
    steps: Sequence[NDArray[Any]],
    sequential: bool,
    wanted: Numbers,
    *,
    first_states: bool = False,
) -> UnrolledRun:
    """Writes a run out.

    Args:
        wiring: what every node receives.
        steps: one each: ``[N]`` bool, the nodes that update; or ``[n]``, the order of a sweep.
        sequential: whether steps are sweeps.
        wanted: nodes whose states after the last step are wanted.
        first_states: whether states before the first step are given; else they are zero.
    """
    return _Writer(wiring, steps, sequential, wanted, first_states).run()


class _Writer:
    """Holds what is written so far; lists have a part for the sums and one for each step."""

    def __init__(
        self,
        wiring: Wiring,
        steps: Sequence[NDArray[Any]],
        sequential: bool,
        wanted: Numbers,
        first_states: bool,
    ) -> None:
        self.wiring, self.sequential, self.wanted = wiring, sequential, wanted
        self.updated: list[Flags] = list(steps)
        self.turns: list[Numbers] = []
        if sequential:
            self.turns = [wiring.turns(order) for order in steps]
            rest = wiring.steps_until_rest(len(steps))
            self.updated = [
                (turn < wiring.nodes) & (step < rest) for step, turn in enumerate(self.turns)
            ]
        self.chosen = self._needed()
        self._give_leaves(first_states)
        self._sum_constants()

    def run(self) -> UnrolledRun:
        """Writes every step."""
        self.stale = np.ones(self.wiring.nodes, dtype=bool)
        for step in range(len(self.chosen)):
            if self.wiring.drive == "by step":
                self._drive(step)
                self.stale[:] = True
            if self.sequential:
                self._sweep(step)
            else:
                self._together(step)
        output = self.row[self.wanted]
        output[output == _ABSENT] = ZEROS
        run = UnrolledRun(
            self.leaves,
            np.concatenate([[0], np.cumsum(np.concatenate(self.degrees))]),
            np.concatenate(self.source),
            np.concatenate(self.factor),
            (),
            output,
            self.wiring.one,
        )
        kind = np.concatenate(self.kinds)
        # Sorting rows by how long they wait pays where many of them wait for little.
        if self.sequential or 2 * run.computed <= sum(int(flags.sum()) for flags in self.updated):
            return _by_level(run, kind, self.sums)
        ends = self.leaves + np.cumsum([len(part) for part in self.kinds])
        return _with_waves(run, kind, ends, self.sums)

    def _needed(self) -> list[Flags]:
        """``[N]`` flags of each step: the nodes whose new states are read or wanted later."""
        source, target = self.wiring.between
        need = np.zeros(self.wiring.nodes, dtype=bool)
        need[self.wanted] = True
        chosen: list[Flags] = []
        for step in reversed(range(len(self.updated))):
            now = self.updated[step] & need
            if self.sequential:
                new = self._reads_new(step, source, target)
                now = _with_ancestors(now, source[new], target[new])
                source_of_old = source[~new & now[target]]
            else:
                source_of_old = source[now[target]]
            need &= ~now
            need[source_of_old] = True
            chosen.append(now)
        return chosen[::-1]

    def _reads_new(self, step: int, source: Numbers, target: Numbers) -> Flags:
        """Whether edges between nodes carry the state that their source gets in this sweep."""
        turn = self.turns[step]
        return (turn[source] < turn[target]) & self.updated[step][source]

    def _give_leaves(self, first_states: bool) -> None:
        wiring, free = self.wiring, self.wiring.free_nodes
        self.row = np.full(wiring.sources, _ABSENT)  # of each source, at present
        self.row[wiring.ones] = ONES
        self.row[wiring.inputs] = 2 + np.arange(len(wiring.inputs))
        self.leaves = 2 + len(wiring.inputs)
        if first_states:
            self.row[free] = self.leaves + np.arange(len(free))
            self.leaves += len(free)
        self.first_drive = self.leaves
        if wiring.drive != "none":
            self._drive(0)
            self.leaves += len(free) * (len(self.chosen) if wiring.drive == "by step" else 1)

    def _drive(self, step: int) -> None:
        free = self.wiring.free_nodes
        first = self.first_drive + step * len(free)
        self.row[self.wiring.drive_of(free)] = first + np.arange(len(free))

    def _sum_constants(self) -> None:
        wiring = self.wiring
        used = np.logical_or.reduce([np.zeros(wiring.nodes, dtype=bool), *self.chosen])
        source, target, factor = wiring.constants
        picked = used[target]
        summed = np.flatnonzero(used & wiring.has_sum)
        self.sums = len(summed)
        self.degrees = [np.bincount(target[picked], minlength=wiring.nodes)[summed]]
        self.source, self.factor = [self.row[source[picked]]], [factor[picked]]
        self.kinds = [np.zeros(len(summed), dtype=np.int64)]
        self.next = self.leaves + len(summed)
        self.row[wiring.sum_of(summed)] = np.arange(self.leaves, self.next)

    def _together(self, step: int) -> None:
        """Nodes that all read the states before the step."""
        chosen = self.chosen[step] & self.stale
        new = np.flatnonzero(chosen)
        source, target, factor = self._received(chosen)
        rows = self.row[source]
        degree, rows, factor = self._without_zeros(new, target, rows, factor)
        empty = (degree == 0) & self.wiring.keeps_zero[new]
        changed = chosen
        if empty.any():
            changed = chosen.copy()
            changed[new[empty & (self.row[new] == _ABSENT)]] = False
            self.row[new[empty]] = _ABSENT
            new, degree = new[~empty], degree[~empty]
        self.stale &= ~chosen
        sender, reader = self.wiring.between
        self.stale[reader[changed[sender]]] = True
        self.row[new] = self.next + np.arange(len(new))
        self._write(new, degree, rows, factor)

    def _sweep(self, step: int) -> None:
        """Nodes one after another, each reading the newest states."""
        chosen = self.chosen[step]
        new = np.flatnonzero(chosen)
        source, target, factor = self._received(chosen)
        rows = self.row[source]
        self.row[new] = self.next + np.arange(len(new))
        inner = np.flatnonzero(source < self.wiring.nodes)
        newest = inner[self._reads_new(step, source[inner], target[inner])]
        rows[newest] = self.row[source[newest]]
        self._write(new, *self._without_zeros(new, target, rows, factor))

    def _received(self, chosen: Flags) -> tuple[Numbers, Numbers, Numbers]:
        source, target, factor = self.wiring.received
        if chosen.all():
            return source, target, factor
        picked = np.flatnonzero(chosen[target])
        return source[picked], target[picked], factor[picked]

    def _without_zeros(
        self, new: Numbers, target: Numbers, rows: Numbers, factor: Numbers
    ) -> tuple[Numbers, Numbers, Numbers]:
        """How much each new node reads that is not zero; rows and factors of that."""
        present = rows != _ABSENT
        if present.all():
            return self.wiring.in_degree[new], rows, factor
        target, rows, factor = target[present], rows[present], factor[present]
        return np.bincount(target, minlength=self.wiring.nodes)[new], rows, factor

    def _write(self, new: Numbers, degree: Numbers, rows: Numbers, factor: Numbers) -> None:
        self.next += len(new)
        self.degrees.append(degree)
        self.source.append(rows)
        self.factor.append(factor)
        self.kinds.append(self.wiring.kind[new])


def _with_ancestors(chosen: Flags, source: Numbers, target: Numbers) -> Flags:
    """The chosen nodes and all from which edges lead to them."""
    while True:
        more = chosen.copy()
        more[source[chosen[target]]] = True
        if (more == chosen).all():
            return chosen
        chosen = more


def _by_level(run: UnrolledRun, kind: Numbers, sums: int) -> UnrolledRun:
    """The same rows in the order of their levels; those of one level are a wave."""
    level = _levels(run, sums)
    order = np.lexsort((kind, level))
    place = np.empty(run.computed, dtype=np.int64)
    place[order] = np.arange(run.computed)
    row = np.concatenate([np.arange(run.leaves), run.leaves + place])
    degree = np.diff(run.offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(degree)])
    old = _ranges(run.offsets[:-1][order], degree)
    again = replace(
        run,
        offsets=offsets,
        source=row[run.source[old]],
        factor=run.factor[old],
        output=row[run.output],
    )
    ends = run.leaves + np.cumsum(np.bincount(level, minlength=1))
    return _with_waves(again, kind[order], ends, sums)


def _levels(run: UnrolledRun, sums: int) -> Numbers:
    """``[computed]``: 0 for sums of constants; else 1 and the most rows on a path to each row."""
    from scipy.sparse import csr_array

    count, given = run.computed, run.leaves + sums
    inner = run.source >= given
    before = np.concatenate([[0], np.cumsum(inner)])
    offsets = before[run.offsets]
    waits = np.diff(offsets)
    parts = (np.ones(int(offsets[-1]), dtype=np.int8), run.source[inner] - run.leaves, offsets)
    by_source = csr_array(parts, shape=(count, count)).tocsc()
    level = np.zeros(count, dtype=np.int64)
    ready = np.flatnonzero(waits == 0)[sums:]  # sums wait for nothing
    number = 1
    while len(ready):
        level[ready] = number
        starts = by_source.indptr[ready]
        readers = by_source.indices[_ranges(starts, by_source.indptr[ready + 1] - starts)]
        waits -= np.bincount(readers, minlength=count)
        ready = np.unique(readers[waits[readers] == 0])
        number += 1
    return level


def _ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> Numbers:
    """The numbers of several ranges, one range behind the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def _with_waves(run: UnrolledRun, kind: Numbers, ends: Numbers, sums: int) -> UnrolledRun:
    """The run with its waves, which end before the rows ``ends``; the first is that of the sums."""
    own = np.concatenate([[0], np.cumsum(kind)])  # rows with the outputs' activation, so far
    waves: list[Wave] = []
    start = run.leaves
    for stop in ends.tolist():
        if stop > start:
            others = int(own[stop - run.leaves] - own[start - run.leaves])
            waves.append(Wave(start, stop - others, stop, not waves and sums > 0))
        start = stop
    return replace(run, waves=tuple(waves))
