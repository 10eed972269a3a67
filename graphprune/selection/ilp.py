"""The best circuit of exactly n edges by integer programming (``scipy.optimize.milp``, HiGHS).

Maximise the sum of the kept edges' scores, subject to: n edges are kept, and every kept edge lies
on a kept path from an input to an output. With x_e in {0, 1} for edges and f_v, b_v in [0, 1] for
"v is reached from an input" and "v reaches an output":

    sum x = n,   x_e <= f_source,   x_e <= b_target,
    f_v <= sum of x into v + sum of f over wires into v      (f = 1 at inputs)
    b_v <= sum of x out of v + sum of b over wires out of v  (b = 1 at outputs)

On acyclic graphs that is all. On a cycle these inequalities hold in a circle, so there every
solution is checked, and each set of nodes S that its edges claim but do not reach is cut off for
good, ``f_v <= what enters S`` for v in S, until none is left: still exact. Coupled groups are one
node. The published programme (Nikankin et al., arXiv 2510.25786) asks for one edge in and one out
at every used node, keeps at most n edges and merges a head's q, k and v.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError
from graphprune.util.checks import share_checked

log = logging.getLogger(__name__)
_CUTS = 500
_INFEASIBLE, _STOPPED = 2, 1  # scipy's status codes


def best_circuit(
    graph: ComputationalGraph,
    values: Tensor,
    count: int,
    *,
    positive: Tensor | None = None,
    positives: int = 0,
    from_inputs: bool = True,
    time_limit: float | None = None,
) -> EdgeMask:
    """The circuit of ``count`` edges without dead ends whose ``values [E]`` have the largest sum.

    Args:
        positive: ``[E]`` bool, the edges of which at least ``positives`` are kept.
        from_inputs: ``False``: an edge need only lead to an output.
        time_limit: seconds, after which the best circuit so far is taken and a warning logged.

    Raises:
        InputError: no circuit of that size meets all this, or none was found in time.
    """
    program = _Program.of(graph, values, count, from_inputs)
    if positive is not None and positives:
        program.at_least(np.flatnonzero(positive.numpy()), positives)
    return program.solve(values, count, positives, time_limit)


@dataclass(eq=False)
class _Program:
    """Rows of ``A z >= lower`` (or ``== lower``) over z = (x, f, b), gathered as triplets."""

    graph: ComputationalGraph
    from_inputs: bool
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    columns: list[NDArray[np.int64]] = field(default_factory=list)
    entries: list[NDArray[np.float64]] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls, graph: ComputationalGraph, values: Tensor, count: int, from_inputs: bool
    ) -> _Program:
        self = cls(graph, from_inputs)
        self._row(np.arange(self.edges), np.ones(self.edges), count, count)
        sources, targets = self.ends
        self._add_links(self.b_columns(targets))
        self._add_support(backward=True)
        if from_inputs:
            self._add_links(self.f_columns(sources))
            self._add_support(backward=False)
        return self

    # ---------------------------------------------------------------- variables

    @property
    def edges(self) -> int:
        return self.graph.num_edges

    @property
    def ends(self) -> NDArray[np.int64]:
        """``[2, E]``: sources and targets, a coupled group as its first node."""
        return np.asarray(self.graph.representative[self.graph.edge_index.numpy()])

    @property
    def wires(self) -> NDArray[np.int64]:
        return np.asarray(self.graph.representative[self.graph.fixed_edge_index.numpy()])

    def f_columns(self, nodes: Any) -> Any:
        """Columns of f."""
        return self.edges + nodes

    def b_columns(self, nodes: Any) -> Any:
        """Columns of b."""
        return self.edges + self.graph.num_nodes + nodes

    @property
    def size(self) -> int:
        return self.edges + 2 * self.graph.num_nodes

    def terminals(self, *, backward: bool) -> NDArray[np.int64]:
        nodes = self.graph.output_nodes if backward else self.graph.input_nodes
        return np.unique(self.graph.representative[list(nodes)])

    # ---------------------------------------------------------------- rows

    def _row(
        self, columns: NDArray[np.int64], entries: NDArray[Any], lower: float, upper: float = np.inf
    ) -> None:
        self.rows.append(np.full(len(columns), len(self.lower)))
        self.columns.append(columns)
        self.entries.append(np.asarray(entries, dtype=np.float64))
        self.lower.append(lower)
        self.upper.append(upper)

    def at_least(self, edges: NDArray[np.int64], count: int) -> None:
        """So many of ``edges`` are kept."""
        self._row(edges, np.ones(len(edges)), count)

    def _add_links(self, columns: NDArray[np.int64]) -> None:
        """``column - x_e >= 0`` for every edge."""
        first, n = len(self.lower), self.edges
        self.rows.append(np.tile(np.arange(first, first + n), 2))
        self.columns.append(np.concatenate([columns, np.arange(n)]))
        self.entries.append(np.concatenate([np.ones(n), -np.ones(n)]))
        self.lower += [0.0] * n
        self.upper += [np.inf] * n

    def _add_support(self, *, backward: bool) -> None:
        free = set(self.terminals(backward=backward).tolist())
        for node in np.unique(self.graph.representative).tolist():
            if node not in free:
                self.add_cut(node, np.array([node]), backward=backward)

    def add_cut(self, node: int, inside: NDArray[np.int64], *, backward: bool) -> None:
        """F (or b) of ``node`` is at most what enters (leaves) the set ``inside``."""
        column = self.b_columns if backward else self.f_columns
        (near, far), (wire_near, wire_far) = (
            (pair[0], pair[1]) if backward else (pair[1], pair[0])
            for pair in (self.ends, self.wires)
        )
        edges = np.flatnonzero(np.isin(near, inside) & ~np.isin(far, inside))
        crossing = np.isin(wire_near, inside) & ~np.isin(wire_far, inside)
        helpers = column(np.unique(wire_far[crossing]))
        columns = np.concatenate([edges, helpers, [column(node)]]).astype(np.int64)
        entries = np.ones(len(columns))
        entries[-1] = -1.0
        self._row(columns, entries, 0.0)

    # ---------------------------------------------------------------- solving

    def solve(
        self, values: Tensor, count: int, positives: int, time_limit: float | None
    ) -> EdgeMask:
        cost = np.concatenate([-_scaled(values, count), np.zeros(2 * self.graph.num_nodes)])
        for _ in range(_CUTS):
            kept = self._run(cost, count, positives, time_limit)
            if not self._add_violated(kept):
                return EdgeMask(self.graph, torch.from_numpy(kept).float())
        raise InputError(f"no connected circuit of {count} edges was found in {_CUTS} rounds")

    def _run(
        self, cost: NDArray[np.float64], count: int, positives: int, time_limit: float | None
    ) -> NDArray[np.bool_]:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        triplets = (np.concatenate(part) for part in (self.entries, self.rows, self.columns))
        entries, rows, columns = triplets
        matrix = csr_array((entries, (rows, columns)), shape=(len(self.lower), self.size))
        integral = np.zeros(self.size)
        integral[: self.edges] = 1
        limits: Any = (np.array(self.lower), np.array(self.upper))  # scipy's hints know single ones
        options: dict[str, Any] = {"mip_rel_gap": 0.0}
        if time_limit is not None:
            options["time_limit"] = time_limit
        result = milp(
            cost,
            integrality=integral,
            bounds=Bounds(0.0, 1.0),
            constraints=LinearConstraint(matrix, *limits),
            options=options,
        )
        if result.x is not None:
            if result.status == _STOPPED:
                log.warning(
                    "the integer programme stopped after %g s with a circuit that is within %.2g "
                    "of the best in relative terms", time_limit, result.mip_gap,
                )  # fmt: skip
            return np.asarray(result.x[: self.edges] > 0.5)
        wish = f", {positives} of them with a score above 0" if positives else ""
        if result.status == _INFEASIBLE:
            raise InputError(
                f"infeasible: no circuit of this graph has exactly {count} edges{wish}, each on a "
                f"path {'from an input ' if self.from_inputs else ''}to an output"
            )
        raise InputError(f"the integer programme for {count} edges{wish} failed: {result.message}")

    def _add_violated(self, kept: NDArray[np.bool_]) -> bool:
        """Adds a row for every node that kept edges claim to reach and do not; whether any does."""
        graph, (sources, targets) = self.graph, self.ends
        before = len(self.lower)
        for backward, ends, claimed in (
            (True, graph.output_nodes, targets), (False, graph.input_nodes, sources),
        ):  # fmt: skip
            if not backward and not self.from_inputs:
                continue
            reached = graph.reachable(ends, kept, backward=backward)
            astray = np.unique(claimed[kept & ~reached[claimed]])
            inside = np.unique(graph.representative[np.flatnonzero(~reached)])
            for node in astray.tolist():
                self.add_cut(node, inside, backward=backward)
        return len(self.lower) > before


def least_positive(values: Tensor, count: int, positives: float) -> int:
    """How many of ``count`` edges are that share; raises where fewer of ``values`` are above 0."""
    least = math.ceil(share_checked(positives, "positives") * count - 1e-9)
    positive = int((values > 0).sum())
    if positive < least:
        raise InputError(
            f"infeasible: positives={positives} of {count} edges are {least}, but only "
            f"{positive} edges score above 0"
        )
    return least


def _scaled(values: Tensor, count: int) -> NDArray[np.float64]:
    """Values on a scale where the last edge inside the budget is 1: the solver's tolerances hold.

    Attributions span many orders of magnitude; on the scale of the largest, the edges that are
    hard to choose between would all be 0 to the solver.
    """
    raw = values.double().numpy()
    size = np.sort(np.abs(raw))[::-1]
    unit = max(size[min(count, len(size)) - 1], size[0] * 1e-6)
    return np.asarray(raw / unit) if unit > 0 else raw
