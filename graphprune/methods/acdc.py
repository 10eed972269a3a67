"""ACDC: greedy descent over the edges (Conmy et al., NeurIPS 2023), made fast without changing it.

The rule: edges in reverse topological order; an edge goes for good if cutting it raises the loss by
less than tau. The published convention compares the change itself, a second one its magnitude
(``absolute``). Nodes that lead nowhere any more lose their incoming edges untried.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from graphprune.capabilities import WiderCopy, trials_of
from graphprune.core.ablation import resolve_ablation
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.core.method import Pruner
from graphprune.core.metrics import Metric, as_metric
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.result import Result
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.core.trials import FullTrials
from graphprune.core.variants import HasVariants
from graphprune.errors import InputError
from graphprune.search.checkpoint import RunDirectory, identity
from graphprune.search.evaluators import (
    ExactEvaluator,
    LossEvaluator,
    MakeTrials,
    Measurement,
    Recheck,
)
from graphprune.search.greedy_pruning import Branch, GreedyPruning, Limits
from graphprune.search.order import EdgeOrder, edge_order
from graphprune.util.checks import at_least, require_one_of

__all__ = ["ACDC"]

_RELEASED: dict[str, Any] = {"metric": "kl", "absolute": False, "drop_dead": True}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ACDC(HasVariants, Pruner):
    """Greedy descent at a threshold (arXiv 2304.14997).

    An edge goes if cutting it, after all that went before, raises the loss by less than ``tau``.

    Args:
        variant: ``"default"``, or an order that was published, see below.
        tau: the least rise of the loss that keeps an edge, in the metric's units.
        metric: what is measured, ``"kl"`` (to the full model) as published, another metric's name,
            ``"task"`` for the task's own, a :class:`~graphprune.Metric` or a function; a metric
            where higher is better is taken with the other sign.
        order: the order of decisions, see :meth:`edge_order`.
        absolute: compare the size of the change, whatever its sign.
        drop_dead: cut edges into nodes that lead nowhere without trying them.
        exact: ``"speculative"`` tries many edges in one call and computes only what they change
            where the model and the order allow it; ``"sequential"`` is the plain loop, one whole
            run for each edge. Both give the same circuit.
        recheck: decisions closer to ``tau`` than the outputs' noise are made again in float64 by
            whole runs of one fixed shape (``"float64"``: needs a float64 copy of the weights),
            by such runs in the model's own precision (``"same"``), or not at all (``"off"``).
        candidates: edges tried in one call at most.
        max_evaluations, max_seconds: stop after so many runs, or seconds, of this call; undecided
            edges are kept.
        run_dir: a folder for checkpoints; naming it again goes on at the edge where it stopped.

    Variants: the orders of github.com/ArthurConmy/Automatic-Circuit-Discovery at bc99ace. All have
    ``metric`` "kl" and ``absolute`` False (acdc/main.py; tau is swept) and ``drop_dead`` True
    (acdc/TLACDCExperiment.py), and a reader's senders from the latest layer on:

    - ``"paper"``: order "reverse_topological", heads of a layer from the highest number, which is
      what acdc/main.py runs (indices-mode and names-mode "normal").
    - ``"paper-reversed-heads"``: order "reversed_heads", from the lowest number, the default of
      acdc/TLACDCExperiment.py (indices_mode "reverse").
    - ``"paper-reversed-senders"``: order "reversed_senders", senders from the first layer on
      (names-mode "reverse").

    Example:
        >>> ACDC(tau=0.01).label
        'ACDC(tau=0.01)'
    """

    variants: ClassVar = {
        "paper": _RELEASED | {"order": "reverse_topological"},
        "paper-reversed-heads": _RELEASED | {"order": "reversed_heads"},
        "paper-reversed-senders": _RELEASED | {"order": "reversed_senders"},
    }
    tau: float = 1e-3
    metric: str | Metric = "kl"
    order: EdgeOrder = "reverse_topological"
    absolute: bool = False
    drop_dead: bool = True
    exact: Literal["speculative", "sequential"] = "speculative"
    recheck: Literal["float64", "same", "off"] = "float64"
    candidates: int = 64
    max_evaluations: int | None = None
    max_seconds: float | None = None
    run_dir: str | Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _threshold(self.tau)
        require_one_of(self.exact, ("speculative", "sequential"), "exact")
        require_one_of(self.recheck, ("float64", "same", "off"), "recheck")
        at_least(self.candidates, 1, "candidates")
        if not isinstance(self.order, str | EdgeScores):
            object.__setattr__(self, "order", _numbers(self.order))
        if self.max_evaluations is not None:
            at_least(self.max_evaluations, 1, "max_evaluations")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise InputError(f"max_seconds must be a positive number, got {self.max_seconds!r}")

    # ---------------------------------------------------------------- results

    def edge_order(self, graph: ComputationalGraph) -> Tensor:
        """``[E]``: edge numbers in the order they are decided in.

        See :func:`graphprune.search.order.edge_order`.
        """
        return edge_order(graph, self.order)

    def fit(
        self,
        model: MaskedModel,
        task: Task,
        size: int | float | None = None,
        *,
        within: EdgeMask | None = None,
    ) -> Result:
        """The circuit at ``tau``; Ctrl-C ends it with what was decided, other edges are kept.

        ``values["effects"]`` is the rise of the loss when an edge was decided. ``notes``: ``tau``,
        ``decided`` (how many edges of the order), ``dropped`` (of them untried, since their reader
        led nowhere), ``evaluations``, ``rechecks``, ``noise`` (the band) and ``seconds``.

        Args:
            model, task: what is pruned, on which examples.
            size: refused; ``tau`` decides.
            within: a circuit to begin with instead of the whole graph; its edges alone are decided.
        """
        self.sized(size)
        return self.sweep(model, task, [self.tau], within=within)[float(self.tau)]

    def sweep(
        self,
        model: MaskedModel,
        task: Task,
        taus: Sequence[float],
        *,
        within: EdgeMask | None = None,
    ) -> dict[float, Result]:
        """Circuits at many thresholds, by threshold, ascending.

        They share clean and ablated passes, and every decision up to the first they disagree about.
        The limits count for all of them together; a threshold not begun keeps all edges.
        """
        require_model(model)
        wanted = sorted({_threshold(tau) for tau in taus})
        if not wanted:
            raise InputError("a sweep needs at least one tau")
        if within is not None:
            require_same_graph(model.graph, within.graph, "the model and the circuit to begin with")
            if not within.is_binary:
                raise InputError("the circuit to begin with must be a mask of zeros and ones")
        search = self._search(model, task, wanted, within)
        search.run()
        found: dict[float, Result] = {}
        for branch in (*search.done, *search.open):
            for tau in branch.taus:
                found[tau] = self._descent(model, search, branch, tau)
                if within is None:
                    for remark in found[tau].remarks:
                        log.warning("%s", remark)
        return {tau: dataclasses.replace(found[tau], task=task) for tau in wanted}

    def _descent(
        self, model: MaskedModel, search: GreedyPruning, branch: Branch, tau: float
    ) -> Result:
        mask = EdgeMask(model.graph, branch.kept.float())
        stopped = search.stopped if branch in search.open else ""
        notes = {
            "tau": tau,
            "decided": branch.at,
            "dropped": branch.at - int((~torch.isnan(branch.effects)).sum()),
            "evaluations": search.evaluations,
            "rechecks": sum(check.count for check in search.rechecks),
            "noise": max((check.band for check in search.rechecks), default=0.0),
            "seconds": search.seconds,
        }
        remarks = () if stopped else _remarks(mask, tau)
        return Result(
            mask,
            None,
            self.chosen_ablation,
            values={"effects": branch.effects},
            notes=notes,
            remarks=remarks,
            stopped=stopped,
        )

    # ---------------------------------------------------------------- parts

    def _search(
        self, model: MaskedModel, task: Task, taus: list[float], within: EdgeMask | None
    ) -> GreedyPruning:
        order = self.edge_order(model.graph)
        folder = None
        if self.run_dir is not None:
            settings = self._settings(model, taus)
            if within is not None:
                settings["within"] = within.kept
            folder = RunDirectory(self.run_dir, identity(model, task, settings))
        evaluator = self._evaluator(model, task, order)
        return GreedyPruning(
            graph=model.graph,
            order=order if within is None else order[within.kept[order]],
            evaluator=evaluator,
            rechecks=self._rechecks(model, task, evaluator, order),
            taus=taus,
            speculative=self.exact == "speculative",
            absolute=self.absolute,
            drop_dead=self.drop_dead,
            limits=Limits(self.max_evaluations, self.max_seconds, self.candidates),
            folder=folder,
            label=type(self).__name__,
            within=None if within is None else within.kept,
        )

    def _measured(self, model: MaskedModel, task: Task) -> Measurement:
        metric = task.metric if self.metric == "task" else as_metric(self.metric)
        ablation = resolve_ablation(model, task, self.ablation)
        return Measurement(task, metric, ablation, self.batch_size)

    def _evaluator(self, model: MaskedModel, task: Task, order: Tensor) -> LossEvaluator:
        """What decides where no threshold is near."""
        return LossEvaluator(model, self._measured(model, task), self._trials(order))

    def _trials(self, order: Tensor) -> MakeTrials:
        if self.exact == "sequential":
            return FullTrials
        return lambda model, batch, kept, reference: trials_of(model, batch, kept, reference, order)

    def _rechecks(
        self, model: MaskedModel, task: Task, evaluator: LossEvaluator, order: Tensor
    ) -> list[Recheck]:
        """What decides near a threshold, the widest band first."""
        if self.recheck == "off":
            return []
        exact = self._exact(model, task, wide=self.recheck == "float64")

        @torch.no_grad()
        def quick(kept: Tensor) -> float:
            evaluator.start(kept)
            return evaluator.loss()

        return [Recheck(exact, noise(quick, exact.loss, model.graph, order))]

    def _exact(self, model: MaskedModel, task: Task, *, wide: bool) -> ExactEvaluator:
        """Whole runs, of a float64 copy if ``wide`` and there is one."""
        copy = model.widened() if wide and isinstance(model, WiderCopy) else None
        model = copy or model
        return ExactEvaluator(model, self._measured(model, task))

    def _settings(self, model: MaskedModel, taus: list[float]) -> dict[str, Any]:
        # What changes the time alone may differ when a run goes on.
        free = {"run_dir", "max_evaluations", "max_seconds", "candidates", "exact", "tau"}
        resolved = self.resolved()
        found = {f.name: getattr(resolved, f.name) for f in dataclasses.fields(self)}
        if isinstance(self.order, EdgeScores):
            found["order"] = self.order.values.tolist()
        kept = {k: v for k, v in found.items() if k not in free}
        return {"method": type(self).__name__, "taus": taus} | kept


def noise(
    quick: Callable[[Tensor], float],
    exact: Callable[[Tensor], float],
    graph: ComputationalGraph,
    order: Tensor,
) -> float:
    """How far losses may stray: some multiple of what a few circuits' losses stray."""
    worst, size = 0.0, 1.0
    for _, kept in passed_circuits(graph, order):
        true = exact(kept)
        worst, size = max(worst, abs(quick(kept) - true)), max(size, abs(true))
    return max(8.0 * worst, 64.0 * float(np.finfo(np.float64).eps) * size)


def passed_circuits(graph: ComputationalGraph, order: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Circuits ``[E]`` bool as a descent passes them, so many edges decided, most of them cut."""
    generator = torch.Generator().manual_seed(0)
    for share in (0.05, 0.4, 0.8):
        kept = torch.ones(graph.num_edges, dtype=torch.bool)
        cut = order[: max(1, int(share * graph.num_edges))]
        kept[cut] = torch.rand(len(cut), generator=generator) < 0.2
        yield len(cut), kept


def _remarks(mask: EdgeMask, tau: float) -> tuple[str, ...]:
    """What should be known of the circuit: that nothing or everything is left."""
    if not mask.num_kept:
        return (f"tau={tau:g} removes every edge: no single cut costs that much",)
    if mask.num_kept == mask.graph.num_edges:
        return (f"tau={tau:g} removes nothing: every cut costs at least that much",)
    return ()


def _numbers(order: object) -> tuple[int, ...]:
    """A sequence of edge numbers as plain integers."""
    found = np.asarray(order)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InputError(
            f"an order is a list of edge numbers, got {found.dtype} of shape {list(found.shape)}"
        )
    return tuple(found.tolist())


def _threshold(tau: object) -> float:
    if isinstance(tau, bool) or not isinstance(tau, int | float) or not np.isfinite(tau):
        raise InputError(f"tau is a finite number in the metric's units, got {tau!r}")
    return float(tau)
