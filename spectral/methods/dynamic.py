"""Pruning while a network learns: a schedule, a budget, regrowth, and the masks handled for you.

Cutting by size and growing where the loss's gradient is largest is RigL (Evci et al. 2020,
arXiv 1911.11134), at random sparse evolutionary training (Mocanu et al. 2018, arXiv 1707.04780).
``variant="paper"`` is the rule of arXiv 2502.17522 inside its local learner
(:mod:`..search.published`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.capabilities import CutsWhileTraining, LearnsByNode
from graphprune.core.mask import EdgeMask, budget, require_same_graph
from graphprune.core.model import MaskedModel
from graphprune.core.registry import wrap
from graphprune.errors import InputError
from graphprune.search.cut_edges import CutEdges, MaskOfRuns
from graphprune.util.checks import require_one_of

from ..linalg.eigensolver import DENSE_LIMIT, Solver
from ..linalg.weighted_graph import Degrees, Laplacian, operator, require_known
from ..plotting import plot_training
from ..search.prune import Variant, require_consistent
from ..search.published import WARNING, published_edge
from ..search.set_search import Goal
from .cut_choice import CutChoice, Schedule, criterion_of, scheduled
from .flagged import Flagged
from .spectral import SpectralPruning
from .training_record import TrainingRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DynamicPruning"]

log = logging.getLogger(__name__)
Every = Literal["update", "step", "epoch"]


class DynamicPruning:
    """Prunes what an optimiser trains, step by step.

    Args:
        method: what decides which edges go: ``"damp"``, ``"preserve"`` or ``"gap"`` (a spectral
            goal, by ``laplacian``, ``degrees``), ``"local"`` (closed-form stars; may cut less than
            scheduled), ``"magnitude"`` (weights; of edges without one, norms of their messages),
            ``"gradient"`` (``|w dL/dw|``), ``"random"``, or a :class:`SpectralPruning`, whose goal,
            mode, Laplacian, degrees and dense limit are taken.
        size: kept at the end: an int counts edges (pairs, where they are tied), a float is a
            fraction; ``None`` is .5, and no bound for ``variant="paper"``.
        schedule: how the number falls: ``"linear"``, ``"cubic"`` or ``"geometric"``.
        every: what is counted: ``"step"`` of the optimiser, ``"epoch"`` (call :meth:`step` at its
            end), or ``"update"`` of a node, where a local rule learns.
        interval: counts between two prunings.
        begin, end: counts between which the number falls.
        regrow: the share of cut edges that comes back at each pruning before as many are cut again:
            those of the largest gradients (``method="random"``: any). Their weights begin at 0.
        variant: ``"paper"``: the published rule after every update of a node, with a warning;
            ``laplacian="count"`` or ``"both"``.
        chunk: edges a round of the spectral search, and ``effort`` beyond the rounds, as for
            :func:`~graphprune.spectral.prune`; 0 is the quickest.
        seed: of ``method="random"``.
        place: ``size`` and ``schedule`` may be given by place. In an earlier form, which stays,
            what is pruned stands in place of ``method`` (it has ``edge_weight [E]`` and
            ``edge_keep [E]`` bool), then ``edge_index`` and ``num_nodes``; ``criterion`` and
            ``goal`` say how, an int ``every`` is the interval, and :meth:`step` is called by hand.

    Example:
        >>> net = gp.adapters.ARGNN(
        ...     torch.tensor([[0, 1, 2, 3, 1], [2, 2, 3, 2, 3]]), inputs=[0, 1], outputs=[3]
        ... )
        >>> optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> pruning = gp.DynamicPruning("magnitude", size=3, end=4)
        >>> with pruning.on(net, optimiser):
        ...     for _ in range(4):
        ...         net.read(net(torch.ones(2))).square().sum().backward()
        ...         optimiser.step()
        >>> pruning.history, net.keep(pruning.mask)
        ([(1, 4), (2, 4), (3, 4), (4, 3)], ARGNN(4 nodes, 3 of 5 edges, bernoulli, 10 steps))
    """

    def __init__(
        self,
        method: Any = "damp",
        *place: Any,
        size: int | float | None = None,
        schedule: Schedule | None = None,
        every: Every | int = "step",
        interval: int = 1,
        begin: int = 0,
        end: int = 1000,
        regrow: float = 0.0,
        variant: Literal["default", "paper"] = "default",
        criterion: str = "spectral",
        goal: Goal = "damp",
        laplacian: Laplacian | None = None,
        degrees: Degrees | None = None,
        chunk: int | None = None,
        effort: float = 0.0,
        dense_limit: int = DENSE_LIMIT,
        seed: int = 0,
    ) -> None:
        earlier = not isinstance(method, str | SpectralPruning)
        if not earlier:
            if len(place) > 2:
                raise InputError("only method, size and schedule are given by place")
            size = place[0] if place else size
            schedule = place[1] if len(place) == 2 else schedule
            criterion, goal = criterion_of(method, goal)
        if isinstance(method, SpectralPruning):
            laplacian, degrees, dense_limit = method.laplacian, method.degrees, method.dense_limit
        if isinstance(every, int):
            interval, every = every, "step"
        self.criterion: str = criterion
        self.goal: Goal = goal
        self.variant: Variant = variant
        self.laplacian: Laplacian = laplacian or ("both" if variant == "paper" else "out")
        self.degrees: Degrees | None = degrees
        self.dense_limit = dense_limit
        self.size = 0.5 if size is None and variant == "default" else size
        self.schedule: Schedule = schedule or "cubic"
        self.every, self.interval, self.begin, self.end = every, interval, begin, end
        self.regrow = regrow
        self._require_sound()
        self._choice = CutChoice(
            self.criterion, goal, self.laplacian, degrees, chunk, effort, dense_limit,
            np.random.default_rng(seed),
        )  # fmt: skip
        self.calls = 0
        self.history: list[tuple[int, int]] = []
        self._edges: CutEdges | None = None
        self._mask: EdgeMask | None = None
        self._optimiser: Any = None
        self._record: TrainingRecord | None = None
        if earlier:
            if len(place) != 2:
                raise InputError(
                    "method is 'damp', 'preserve', 'gap', 'local', 'magnitude', 'gradient', "
                    f"'random' or a SpectralPruning, got {type(method).__name__}; to train a model "
                    "write: with gp.DynamicPruning('magnitude').on(model, optimiser): ..."
                )
            self._edges = Flagged(method, *place)
            budget(self.size or 0, self._edges.graph.num_edges)
            if regrow > 0:
                self._edges.forget()

    def _require_sound(self) -> None:
        require_one_of(self.variant, ("default", "paper"), "variant")
        require_one_of(self.every, ("update", "step", "epoch"), "every")
        if not 0 <= self.begin < self.end or self.interval < 1:
            raise InputError(
                f"expected 0 <= begin < end and an interval >= 1, got begin={self.begin}, "
                f"end={self.end}, interval={self.interval}"
            )
        if not 0.0 <= self.regrow < 1.0:
            raise InputError(f"regrow is a share of the cut edges in [0, 1), got {self.regrow}")
        require_known(self.schedule, Schedule, "schedule")
        require_consistent(self.goal, self.laplacian, self.degrees, None, variant=self.variant)
        if self.variant == "paper" and (self.every != "update" or self.criterion != "spectral"):
            raise InputError(
                "variant='paper' is the published rule after every update of a node: write "
                "gp.DynamicPruning('damp', variant='paper', every='update')"
            )

    # ---------------------------------------------------------------- training

    @contextmanager
    def on(
        self,
        model: Any,
        optimiser: torch.optim.Optimizer | None = None,
        *,
        data: Any = None,
        record: Callable[[], Mapping[str, Any]] | None = None,
        record_every: int | None = None,
    ) -> Iterator[DynamicPruning]:
        """Prunes ``model`` while the block runs.

        Afterwards the module is as it was, but for what it learned, and :attr:`mask` says what is
        kept.

        Args:
            model: an ARGNN or any PyG module with its ``data`` (whose calls inside the block must
                be over the data's edges), a wrapped model of either, a
                ``DeltaRule`` of :mod:`graphprune.adapters.gnn`, or any other wrapped model, to be
                run as ``model.run(batch, pruning.values, reference)``.
            optimiser: each of its steps is counted (``every="step"``). ``None``: call
                :meth:`step` yourself, between ``backward`` and ``zero_grad``.
            data: of an unwrapped PyG module.
            record: its figures go to :meth:`to_frame`, from the start and after each pruning;
            record_every: or instead from every so many counts.

        Raises:
            InputError: a model that no mask reaches, or ``every="update"`` of one that does not
                learn by node.
        """
        if isinstance(model, nn.Module):
            model = wrap(model) if data is None else wrap(model, data=data)
        if self.every == "update" and not isinstance(model, LearnsByNode):
            raise InputError(
                "every='update' needs a rule that learns at every update of a node, such as "
                f"graphprune.adapters.gnn.DeltaRule(network); got {type(model).__name__}: take "
                "every='step'"
            )
        with ExitStack() as stack:
            if isinstance(model, CutsWhileTraining):
                edges = stack.enter_context(model.cutting())
            elif isinstance(model, MaskedModel):
                edges = MaskOfRuns(model)
            else:
                raise InputError(
                    f"expected a module, a wrapped model or a DeltaRule, got {type(model).__name__}"
                )
            self._begin(edges, optimiser)
            if record is not None:
                solver = Solver(operator(self.laplacian, self.degrees), self.dense_limit)
                self._record = TrainingRecord(record, solver, record_every)
                self._record.add(self.calls, edges)
            if self.every == "update":
                assert isinstance(model, LearnsByNode)
                model.after_update = self._after_update
            elif self.every == "step" and optimiser is not None:
                counted = optimiser.register_step_post_hook(cast("Any", lambda *_: self.step()))
                stack.callback(counted.remove)
            try:
                yield self
            finally:
                self._mask = EdgeMask(edges.graph, edges.kept.float())
                self._edges = self._optimiser = None
        if self.variant == "default":
            self._warn_of_what_is_left(edges.graph.num_edges)

    def _warn_of_what_is_left(self, edges: int) -> None:
        kept, wanted = self.mask.num_kept, budget(self.size or 0, edges)
        if self.calls < self.end:
            log.warning(
                "the schedule ended early, after %d of %d counts, with %d of %d edges kept",
                self.calls, self.end, kept, edges,
            )  # fmt: skip
        elif kept > wanted:
            log.warning(
                "%d of %d edges are kept, %d were asked for: method=%r cuts only edges that lower "
                "rotation of a node's star; 'damp' goes on", kept, edges, wanted, self.criterion,
            )  # fmt: skip

    def _begin(self, edges: CutEdges, optimiser: Any) -> None:
        if self._edges is not None:
            raise InputError("this pruning is under way already; make another for another model")
        budget(self.size or 0, edges.graph.num_edges)
        if self._mask is not None:  # it goes on where it stood
            require_same_graph(self._mask.graph, edges.graph, "what was pruned and the model")
            edges.keep(self._mask.kept, torch.zeros_like(self._mask.kept))
        self._edges, self._optimiser = edges, optimiser
        if self.variant == "paper":
            warnings.warn(WARNING, UserWarning, stacklevel=5)

    def _bound(self) -> CutEdges:
        if self._edges is None:
            raise InputError("nothing is pruned yet: with pruning.on(model, optimiser): ...")
        return self._edges

    @property
    def mask(self) -> EdgeMask:
        """What is kept now, or was when the block ended."""
        if self._edges is None and self._mask is not None:
            return self._mask
        edges = self._bound()
        return EdgeMask(edges.graph, edges.kept.float())

    @property
    def values(self) -> Tensor:
        """``[E]``: the mask to run a wrapped model under, which collects gradients."""
        if isinstance(edges := self._bound(), MaskOfRuns):
            return edges.values
        raise InputError("this model is masked in its own calls; only others need the mask")

    def wanted(self, call: int) -> int:
        """Edges to keep after count number ``call`` (from 1)."""
        edges = self._bound().graph.num_edges
        last = budget(self.size or 0, edges)
        share = (call - self.begin) / (self.end - self.begin)
        return max(last, int(np.ceil(edges * scheduled(self.schedule, share, last / edges))))

    @torch.no_grad()
    def step(self) -> int:
        """Counts one and prunes where it is time; gives how many fewer edges are kept."""
        edges = self._bound()
        self.calls += 1
        fewer = self._prune_if_due(edges)
        if self._record is not None:
            self._record.counted(self.calls, edges)
        if self.regrow > 0 or self.criterion == "gradient":
            edges.forget()
        edges.stepped()
        return fewer

    def _after_update(self, rule: Any, node: int) -> None:
        if self.variant == "default":
            self.step()
            return
        self.calls += 1
        edges = self._bound()
        least = budget(self.size or 0, edges.graph.num_edges)
        if int(rule.keep.sum()) > least:
            laplacian: Any = self.laplacian
            pair = published_edge(rule.keep, rule.weight, node, laplacian)
            if pair is not None:
                rule.keep[pair] = False
                self._note(edges)
        if self._record is not None:
            self._record.counted(self.calls, edges)

    # ---------------------------------------------------------------- cutting and growing

    def _prune_if_due(self, edges: CutEdges) -> int:
        due = (self.calls - self.begin) % self.interval == 0 or self.calls == self.end
        if not self.begin < self.calls <= self.end or not due:
            return 0
        before = edges.kept
        count = int(before.sum())
        kept = self._grown(edges, before)
        wanted = min(count, self.wanted(self.calls))
        kept = torch.from_numpy(self._choice.cut(edges, kept, wanted))
        edges.keep(kept, kept & ~before)
        self._note(edges)
        return count - int(kept.sum())

    def _note(self, edges: CutEdges) -> None:
        self.history.append((self.calls, int(edges.kept.sum())))
        if self._record is not None:
            self._record.pruned(self.calls, edges)

    def _grown(self, edges: CutEdges, kept: Tensor) -> Tensor:
        cut = torch.nonzero(~kept)[:, 0]
        count = int(self.regrow * len(cut))
        if not count:
            return kept
        chosen = self._choice.grow(edges, cut, count)
        kept = kept.clone()
        kept[chosen] = True
        edges.keep(kept, torch.zeros_like(kept).index_fill_(0, chosen, True))
        self._forget_moments(edges, chosen)
        return kept

    def _forget_moments(self, edges: CutEdges, chosen: Tensor) -> None:
        """Momentum of an edge that was cut says nothing of one that grows."""
        if self._optimiser is None:
            return
        which = torch.isin(edges.graph.per_message(torch.arange(edges.graph.num_edges)), chosen)
        for number in edges.numbers():
            for moment in self._optimiser.state.get(number, {}).values():
                if isinstance(moment, Tensor) and moment.shape == number.shape:
                    moment[which.to(moment.device)] = 0.0

    # ---------------------------------------------------------------- what went on

    def to_frame(self) -> pd.DataFrame:
        """A row for the start and each pruning: count, kept, rotation, seconds, and ``record``'s.

        Raises :class:`InputError` where no ``record`` was given to :meth:`on`.
        """
        if self._record is None:
            raise InputError(
                "nothing was recorded: pruning.on(model, optimiser, record=lambda: "
                "{'accuracy': ...})"
            )
        return self._record.to_frame()

    def plot(self, path: str | Path | None = None) -> Any:
        """Edges, rotation, time and ``record``'s figures as training went: a matplotlib figure."""
        return plot_training({str(self): self.to_frame()}, path)

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, and what is kept."""
        kept = None if self._mask is None and self._edges is None else self.mask.values.clone()
        return {"calls": self.calls, "history": list(self.history), "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`, inside the block."""
        self.calls = int(state["calls"])
        self.history = [(int(call), int(kept)) for call, kept in state["history"]]
        kept = state.get("kept")
        if kept is not None:
            edges = self._bound()
            edges.keep(kept > 0, torch.zeros(len(kept), dtype=torch.bool))

    def __repr__(self) -> str:
        how = self.goal if self.criterion == "spectral" else self.criterion
        paper = ", variant='paper'" if self.variant == "paper" else ""
        return f"DynamicPruning({how!r}, size={self.size}, every={self.every!r}{paper})"
