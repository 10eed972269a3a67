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

from .wiring import Flags, Numbers, Wiring, ranges

__all__ = ["UnrolledRun", "Wave", "unroll", "unroll_held"]

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
        held: of a run for any updates (:func:`unroll_held`), the rows of the nodes' first states.
        nodes: and the nodes that have a row in each of its waves but that of the sums.
    """

    leaves: int
    offsets: Numbers
    source: Numbers
    factor: Numbers
    waves: tuple[Wave, ...]
    output: Numbers
    one: int
    held: Numbers | None = None
    nodes: Numbers | None = None

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
    by_level: bool = True,
) -> UnrolledRun:
    """Writes a run out.

    Args:
        wiring: what every node receives.
        steps: one each: ``[N]`` bool, the nodes that update; or ``[n]``, the order of a sweep.
        sequential: whether steps are sweeps.
        wanted: nodes whose states after the last step are wanted.
        first_states: whether states before the first step are given; else they are zero.
        by_level: whether rows of several steps are computed together where many wait for few;
            sorting them takes longer than it saves in one run. Sweeps always are.
    """
    return _Writer(wiring, steps, sequential, wanted, first_states).run(by_level)


def unroll_held(
    wiring: Wiring, steps: int, wanted: Numbers, *, first_states: bool = False
) -> UnrolledRun:
    """Writes a run out for any updates of ``steps`` steps that are not sweeps.

    Every node that matters has a row in every step. Where it does not update that is the state
    before, which is held: more rows are computed, and none has to be found for new updates.
    """
    every = [wiring.free] * steps
    return _Writer(wiring, every, False, wanted, first_states, held=True).run(by_level=False)


class _Writer:
    """Decides step by step which nodes get a row, then writes what all of these rows read."""

    def __init__(
        self,
        wiring: Wiring,
        steps: Sequence[NDArray[Any]],
        sequential: bool,
        wanted: Numbers,
        first_states: bool,
        held: bool = False,
    ) -> None:
        self.wiring, self.sequential, self.wanted = wiring, sequential, wanted
        self.held = held
        self.updated: list[Flags] = list(steps)
        if sequential:
            turns = [wiring.turns(order) for order in steps]
            rest = wiring.steps_until_rest(len(steps))
            self.updated = [
                (turn < wiring.nodes) & (step < rest) for step, turn in enumerate(turns)
            ]
            # Nodes that do not update come last: nobody reads a new state of theirs.
            self.turns = np.full((len(steps), wiring.sources), wiring.nodes)
            for own, turn, updated in zip(self.turns, turns, self.updated, strict=True):
                own[: wiring.nodes][updated] = turn[updated]
        self.chosen = self._ever_needed() if held else self._needed()
        self._give_leaves(first_states)
        self._sum_constants()

    def run(self, by_level: bool) -> UnrolledRun:
        """Writes every step."""
        first = self.row.copy()
        new = self._new_nodes()
        output = self.row[self.wanted]
        output[output == _ABSENT] = ZEROS
        offsets, source, factor = self._readings(new)
        run = UnrolledRun(self.leaves, offsets, source, factor, (), output, self.wiring.one)
        kind = np.zeros(run.computed, dtype=np.int64)
        kind[self.sums :] = self.wiring.kind[np.concatenate(new)]
        # Sorting rows by how long they wait pays where many of them wait for little.
        few = 2 * run.computed <= sum(int(flags.sum()) for flags in self.updated)
        if self.sequential or (by_level and few):
            return _by_level(run, kind, self.sums)
        ends = self.leaves + np.cumsum([self.sums, *map(len, new)])
        if self.held:
            rows = first[new[0]]
            rows[rows == _ABSENT] = ZEROS
            run = replace(run, held=rows, nodes=new[0])
        return _with_waves(run, kind, ends, self.sums)

    def _ever_needed(self) -> list[Flags]:
        """``[N]`` flags, the same for each step: the nodes from which a wanted one is reached."""
        need = np.zeros(self.wiring.nodes, dtype=bool)
        need[self.wanted] = True
        need = _with_ancestors(need, *self.wiring.between)
        return [need & updated for updated in self.updated]

    def _needed(self) -> list[Flags]:
        """``[N]`` flags of each step: the nodes whose new states are read or wanted later."""
        source, target = self.wiring.between
        need = np.zeros(self.wiring.nodes, dtype=bool)
        need[self.wanted] = True
        chosen: list[Flags] = []
        for step in reversed(range(len(self.updated))):
            now = self.updated[step] & need
            if self.sequential:
                new = self.turns[step][source] < self.turns[step][target]
                now = _with_ancestors(now, source[new], target[new])
                source_of_old = source[~new & now[target]]
            else:
                source_of_old = source[now[target]]
            need &= ~now
            need[source_of_old] = True
            chosen.append(now)
        return chosen[::-1]

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
        self.into_sums = (
            np.bincount(target[picked], minlength=wiring.nodes)[summed],
            self.row[source[picked]],
            factor[picked],
        )
        self.next = self.leaves + len(summed)
        self.row[wiring.sum_of(summed)] = np.arange(self.leaves, self.next)

    def _new_nodes(self) -> list[Numbers]:
        """The nodes that get a row, of each step; ``rows_at [steps + 1, sources]`` is filled."""
        wiring, nodes = self.wiring, self.wiring.nodes
        sender, reader = wiring.between
        stale = np.ones(nodes, dtype=bool)
        present = self.row[:nodes] != _ABSENT
        self.rows_at = np.empty((len(self.chosen) + 1, wiring.sources), dtype=np.int64)
        new: list[Numbers] = []
        for step, chosen in enumerate(self.chosen):
            if wiring.drive == "by step":
                self._drive(step)
                stale[:] = True
            self.rows_at[step] = self.row
            written = chosen
            # In a sweep a source may change before or after its reader.
            if not (self.sequential or self.held):
                written = changed = chosen & stale
                stale &= ~written
                if not wiring.never_zero.all():
                    filled = wiring.never_zero.copy()
                    filled[reader[present[sender]]] = True
                    changed = written & (filled | present)
                    self.row[:nodes][written & ~filled] = _ABSENT
                    present = np.where(written, filled, present)
                    written = written & filled
                stale[reader[changed[sender]]] = True
            new.append(np.flatnonzero(written))
            self.row[new[-1]] = np.arange(self.next, self.next + len(new[-1]))
            self.next += len(new[-1])
        self.rows_at[-1] = self.row
        return new

    def _readings(self, new: list[Numbers]) -> tuple[Numbers, Numbers, Numbers]:
        """Offsets, source and factor of all rows, from the nodes that get one in each step."""
        wiring, width = self.wiring, self.wiring.sources
        nodes = np.concatenate(new)
        sources, _, factors = wiring.received
        degree = wiring.in_degree[nodes]
        picked = ranges(wiring.first_received[nodes], degree)
        source = sources[picked]
        at = np.repeat(np.arange(len(new)) * width, [len(part) for part in new])
        place = np.repeat(at, degree) + source
        if self.sequential:
            turns = self.turns.ravel()
            place += width * (turns[place] < np.repeat(turns[at + nodes], degree))
        rows, factor = self.rows_at.ravel()[place], factors[picked]
        ends = np.cumsum(degree)
        there = rows != _ABSENT
        if not there.all():
            ends = np.concatenate([[0], np.cumsum(there)])[ends]
            rows, factor = rows[there], factor[there]
        count, of_sums, factor_of_sums = self.into_sums
        before = np.concatenate([[0], np.cumsum(count)])
        return (
            np.concatenate([before, before[-1] + ends]),
            np.concatenate([of_sums, rows]),
            np.concatenate([factor_of_sums, factor]),
        )


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
    old = ranges(run.offsets[:-1][order], degree)
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
    starts, counts = by_source.indptr, np.diff(by_source.indptr)
    last = np.empty(count, dtype=np.int64)  # the place where a row stands last among readers
    number = 1
    while len(ready):
        level[ready] = number
        readers = by_source.indices[ranges(starts[ready], counts[ready])]
        np.subtract.at(waits, readers, 1)
        ready = readers[waits[readers] == 0]
        last[ready] = places = np.arange(len(ready))
        ready = ready[last[ready] == places]  # each once
        number += 1
    return level


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
