"""Pruning while a network learns: a callback with a schedule, a budget and regrowth.

It works on anything with a weight and a keep flag for each edge: ``edge_weight [E]`` (a parameter)
and ``edge_keep [E]`` (a bool buffer), such as :class:`graphprune.adapters.ARGNN`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from graphprune.core.mask import budget
from graphprune.errors import InputError

from ..linalg.eigensolver import DENSE_LIMIT, Solver
from ..linalg.sensitivity import measure_named
from ..linalg.weighted_graph import Degrees, Laplacian, operator, require_known, weighted_graph
from ..search.global_search import GlobalSearch
from ..search.prune import require_consistent
from ..search.set_search import Goal
from ..search.star_search import StarSearch

__all__ = ["DynamicPruning", "Schedule", "scheduled"]

Schedule = Literal["linear", "cubic", "geometric"]
Criterion = Literal["spectral", "local", "magnitude"]


def scheduled(schedule: Schedule, share: float, end: float) -> float:
    """The share of edges kept after a ``share`` of the schedule, from 1 down to ``end``.

    Example:
        >>> [scheduled(s, 0.5, 0.25) for s in ("linear", "cubic", "geometric")]
        [0.625, 0.34375, 0.5]
    """
    require_known(schedule, Schedule, "schedule")
    share = min(max(share, 0.0), 1.0)
    if schedule == "linear":
        return 1.0 - (1.0 - end) * share
    if schedule == "cubic":
        return end + (1.0 - end) * (1.0 - share) ** 3
    return float(end**share)


@dataclass(eq=False)
class DynamicPruning:
    """Prunes ``target`` step by step; call :meth:`step` after every update (or epoch).

    Args:
        target: has ``edge_weight [E]`` and ``edge_keep [E]``; only the flags are changed, and the
            weights of edges that grow again, which start at 0.
        edge_index: ``[2, E]``, and ``num_nodes``.
        size: kept at the end: an int counts edges, a float is a fraction.
        begin, end: calls of :meth:`step` between which the number of edges falls.
        every: calls between two prunings.
        schedule: how it falls.
        criterion: ``"spectral"`` (``goal``, ``laplacian``), ``"local"`` (closed-form stars; may cut
            less than scheduled) or ``"magnitude"``.
        regrow: the share of cut edges that comes back at each pruning, those of the largest
            gradients first, before as many are cut again. A weight that is multiplied by its flag
            has no gradient where it is cut, so a target with ``dense_gradient`` (``None`` or
            ``[E]``, as :class:`graphprune.adapters.ARGNN` has it) is asked for the gradient by each
            edge's weight as it counts in the run, summed since the last call of :meth:`step`. Of
            others ``edge_weight.grad`` is read; one of zeros at all cut edges is refused.
        chunk: edges a round of the spectral search, and ``effort`` beyond the rounds, as for
            :func:`~graphprune.spectral.prune`; 0 is the quickest.

    Example:
        >>> class Ring:
        ...     edge_weight, edge_keep = torch.ones(3), torch.ones(3, dtype=torch.bool)
        >>> pruning = DynamicPruning(Ring, [[0, 1, 2], [1, 2, 0]], 3, size=2, end=2)
        >>> [pruning.step() for _ in range(3)], Ring.edge_keep.sum().item()
        ([0, 1, 0], 2)
    """

    target: Any
    edge_index: Any
    num_nodes: int
    size: int | float = 0.5
    begin: int = 0
    end: int = 1000
    every: int = 1
    schedule: Schedule = "cubic"
    criterion: Criterion = "spectral"
    goal: Goal = "damp"
    laplacian: Laplacian = "out"
    degrees: Degrees | None = None
    regrow: float = 0.0
    chunk: int | None = None
    effort: float = 0.0
    dense_limit: int = DENSE_LIMIT
    calls: int = field(default=0, init=False)
    history: list[tuple[int, int]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        for name in ("edge_weight", "edge_keep"):
            if not isinstance(getattr(self.target, name, None), Tensor):
                raise InputError(f"what is pruned needs a tensor {name} [E]")
        self._given = weighted_graph((self.edge_index, self.num_nodes))
        edges = self._given.num_edges
        shapes = [list(self.target.edge_weight.shape), list(self.target.edge_keep.shape)]
        if shapes != [[edges], [edges]]:
            raise InputError(f"edge_weight and edge_keep must be [{edges}], got {shapes}")
        if self.target.edge_keep.dtype != torch.bool:
            raise InputError(f"edge_keep must be bool, got {self.target.edge_keep.dtype}")
        if not 0 <= self.begin < self.end or self.every < 1:
            raise InputError(
                f"expected 0 <= begin < end and every >= 1, got begin={self.begin}, "
                f"end={self.end}, every={self.every}"
            )
        if not 0.0 <= self.regrow < 1.0:
            raise InputError(f"regrow is a share of the cut edges in [0, 1), got {self.regrow}")
        require_known(self.criterion, Criterion, "criterion")
        require_known(self.schedule, Schedule, "schedule")
        if self.criterion == "local" and self.goal != "damp":
            raise InputError(f"criterion='local' only damps, got goal={self.goal!r}")
        require_consistent(self.goal, self.laplacian, self.degrees, None)
        self._last = budget(self.size, edges)
        self._watches = self.regrow > 0 and hasattr(self.target, "dense_gradient")
        if self._watches:
            self.target.dense_gradient = torch.zeros_like(self.target.edge_weight)

    # ---------------------------------------------------------------- training

    def wanted(self, call: int) -> int:
        """Edges to keep after call number ``call`` (from 1)."""
        edges = self._given.num_edges
        share = (call - self.begin) / (self.end - self.begin)
        return max(
            self._last, int(np.ceil(edges * scheduled(self.schedule, share, self._last / edges)))
        )

    @torch.no_grad()
    def step(self) -> int:
        """Counts an update and prunes where it is time; gives how many fewer edges are kept."""
        self.calls += 1
        fewer = self._prune_if_due()
        if self._watches:
            self.target.dense_gradient = torch.zeros_like(self.target.edge_weight)
        return fewer

    def _prune_if_due(self) -> int:
        due = (self.calls - self.begin) % self.every == 0 or self.calls == self.end
        if not self.begin < self.calls <= self.end or not due:
            return 0
        keep = self.target.edge_keep
        before = int(keep.sum())
        self._grow(keep)
        wanted = min(before, self.wanted(self.calls))
        keep.copy_(torch.from_numpy(self._cut(wanted)).to(keep.device))
        self.history.append((self.calls, int(keep.sum())))
        return before - int(keep.sum())

    def _grow(self, keep: Tensor) -> None:
        weight = self.target.edge_weight
        cut = torch.nonzero(~keep)[:, 0]
        count = int(self.regrow * len(cut))
        if not count:
            return
        slope = self.target.dense_gradient if self._watches else weight.grad
        if slope is None or not (self._watches or bool(slope[cut].any())):
            found = "none" if slope is None else "0 at every cut edge"
            raise InputError(
                f"regrow={self.regrow} brings back the edges of the largest gradients, and the "
                f"gradient of edge_weight is {found}; call step() between backward() and "
                "zero_grad(), and where weights are multiplied by edge_keep give what is pruned a "
                "dense_gradient [E]: the gradient by the product"
            )
        slope = slope.to(weight.device)
        chosen = cut[slope[cut].abs().argsort(descending=True, stable=True)[:count]]
        keep[chosen] = True
        weight[chosen] = 0.0

    def _cut(self, wanted: int) -> Any:
        before = self.target.edge_keep.detach().cpu().numpy()
        given = self._given.reweighted(self.target.edge_weight).keep(before)
        if self.criterion == "magnitude":
            size = np.where(before, np.abs(given.weights[: given.num_edges]), -1.0)
            kept = np.zeros_like(before)
            kept[np.argsort(-size, kind="stable")[:wanted]] = True
            return kept & before
        if self.criterion == "local":
            return StarSearch(given, operator(self.laplacian, self.degrees)).run(wanted)
        solver = Solver(operator(self.laplacian, self.degrees), self.dense_limit)
        name = "gap" if self.goal == "gap" else "sum"
        measure = measure_named(name, solver.solve(given, vectors=True), self.laplacian)
        chunk = self.chunk or max(1, int(before.sum()) - wanted)
        search = GlobalSearch(given, solver, measure, self.goal, chunk=chunk, effort=self.effort)
        return search.run(wanted)

    # ---------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands; the flags are the target's own state."""
        return {"calls": self.calls, "history": list(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self.calls = int(state["calls"])
        self.history = [(int(call), int(kept)) for call, kept in state["history"]]
