"""What mask optimisers share: settings, budget, warm start, run directory, and the result.

A mask optimiser minimises a loss over gates, one for each edge. It is a :class:`Pruner` (the mask
has exactly the size asked for) and a :class:`Scorer` (the gates' ranking).
"""

from __future__ import annotations

import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor

from graphprune.capabilities import LearnedConstants, module_of, require
from graphprune.core.ablation import resolve_ablation
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, as_size, budget, require_same_graph, some_edges
from graphprune.core.method import Pruner, Scorer
from graphprune.core.model import Ablation, MaskedModel, require_model
from graphprune.core.result import Result
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.core.variants import HasVariants
from graphprune.errors import InputError
from graphprune.search.checkpoint import RunDirectory, identity
from graphprune.search.distributed import Workers
from graphprune.search.gates import GateKind, edge_ranking, strength
from graphprune.search.loop import Moment, Optimisation, Parameters, Recipe
from graphprune.search.losses import LossLike, as_loss, require_known_loss
from graphprune.search.minibatches import MiniBatches
from graphprune.search.refine import larger_circuits, refine
from graphprune.search.warm_start import StartingScores, WarmStart, first_gates
from graphprune.selection.connected import exact_budget, require_feasible
from graphprune.selection.selectors import cut_off_nodes_differ
from graphprune.util.checks import at_least
from graphprune.util.interrupts import interruptible

from .members import inherit, member_scores

__all__ = ["GateKind", "MaskOptimiser", "WarmStartLike"]

_SPARSITY = 0.98  # where nobody says how many edges stay

log = logging.getLogger(__name__)

WarmStartLike = EdgeScores | Scorer | WarmStart | str | None


@dataclass(frozen=True, kw_only=True)
class MaskOptimiser(HasVariants, Pruner, Scorer, Recipe):
    """Settings of every mask optimiser.

    Args:
        size: what is kept, exactly: a number of edges (int) or a share of all E (float,
            ``int(size * E)`` edges). ``"minimal"``: as few as keep the outputs on every example as
            they are.
        sparsity: the same as the share to remove, as the papers say it: ``E - int(sparsity * E)``
            are kept. One of the two; where neither is said, ``sparsity=0.98``.
        steps: optimisation steps.
        loss: ``"auto"`` (the task's metric where it is a distance to the full model, else KL),
            ``"kl"`` or ``"mse"`` to the full model's outputs, ``"task"`` (the task's metric: what
            CPR rewards), ``"task_gap"`` (its distance to the full model's, example by example),
            ``"mean_gap"`` (the distance of a batch's means: CMD counts that of all examples'; in
            one process alone), a :class:`~graphprune.Metric`, or a function ``(outputs, batch,
            full) -> [B]``.
        warm_start: :class:`~graphprune.EdgeScores`, a scorer, or a scorer's registered name (run
            under the same ablation, batch size and seed unless it says its own): the ranking the
            gates start from. A
            :class:`~graphprune.search.warm_start.WarmStart` also says how scores become gates
            (:class:`~graphprune.SequentialEnsemble` makes one).
        node_gates: gates on what each node sends, beside those on edges; an edge's value is their
            product (where gates are shifted to a budget, their scores add up), and the budget
            counts edges. ``None``: none, but for methods that are published with them.
        seed: of the noise and the order of the examples; ``None``: an ensemble's own, else 0.
        run_dir: a folder for checkpoints; naming it again resumes the run.
        checkpoint_every: steps between checkpoints.
        cache: bytes that cached clean and ablated passes may take; ``None``: a quarter of the free
            memory; 0: none. It changes the time, never the result.

    Example:
        >>> result = gp.EdgePruning(size=8, steps=30).fit(model, task)
        >>> sorted(result.history[-1])
        ['density', 'loss', 'rate', 'step', 'temperature']
    """

    size: int | float | Literal["minimal"] | None = None
    sparsity: float | Literal["minimal"] | None = None
    steps: int = 1000
    loss: LossLike = "auto"
    warm_start: WarmStartLike = None
    node_gates: bool | None = None
    seed: int | None = None
    run_dir: str | Path | None = field(default=None, compare=False)
    checkpoint_every: int = 50
    cache: int | None = field(default=None, compare=False)

    # ---------------------------------------------------------------- checks

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.steps, 1, "steps")
        at_least(self.chosen_seed, 0, "seed")
        at_least(self.checkpoint_every, 1, "checkpoint_every")
        require_known_loss(self.loss)
        self._check_size()
        self._check_warm()

    def _check_size(self) -> None:
        size, sparsity = self.size, self.sparsity
        if size is not None and sparsity is not None:
            raise InputError(
                f"size={size!r} (what is kept) and sparsity={sparsity!r} (what is removed): give "
                "one of the two"
            )
        if size is not None and size != "minimal":
            said = as_size(size)
            if said <= 0 or (isinstance(said, float) and not said <= 1.0):
                raise InputError(
                    "size is a number of edges from 1, a share of them in (0, 1] or 'minimal'; "
                    f"got {size!r}"
                )
        if sparsity is None or sparsity == "minimal":
            return
        number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
        if not number or not 0.0 <= sparsity < 1.0:
            raise InputError(
                "sparsity is a share of edges to remove, in [0, 1), or 'minimal'; got "
                f"{sparsity!r} (size= says how many are kept)"
            )

    def _check_warm(self) -> None:
        warm = self.warm_start
        if not isinstance(warm, WarmStart):
            return
        if warm.mapping == "paper" and self.gate_kind != "hard concrete":
            raise InputError(
                "mapping='paper' gives log alphas of hard concrete gates, as "
                "EdgePruning(variant='paper') and SubnetworkProbing have them; "
                f"{type(self).__name__} here has gates of the kind {self.gate_kind!r}"
            )
        if self.gate_kind == "ranking" and warm.density is not None:
            raise InputError(
                f"{type(self).__name__} draws another size at each step: it has no start density"
            )
        odds = self.gate_kind in ("hard concrete", "chance")
        if odds and warm.mapping == "density" and warm.density is None:
            raise InputError("mapping='density' needs a density for gates that are log odds")

    @property
    @abstractmethod
    def gate_kind(self) -> GateKind:
        """What a gate's parameter is."""

    @property
    def is_minimal(self) -> bool:
        """Whether the fewest edges that keep the outputs are asked for."""
        return "minimal" in (self.size, self.sparsity)

    def count(self, graph: ComputationalGraph) -> int | None:
        """How many edges will be kept; ``None`` for a minimal circuit."""
        if self.is_minimal:
            return None
        if self.size is not None:
            return budget(cast("int | float", self.size), graph.num_edges)
        sparsity = _SPARSITY if self.sparsity is None else cast(float, self.sparsity)
        return graph.num_edges - int(sparsity * graph.num_edges)

    # ---------------------------------------------------------------- results

    def sized(self, size: int | float | None) -> Self:
        """The same method that keeps ``size`` edges (int) or that share of them (float).

        Raises :class:`InputError` where its settings say another size.
        """
        if size is not None and self.sparsity is not None:
            raise InputError(f"{self.label} was also asked for size={size!r}: give one of the two")
        return super().sized(size)

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """The final gates as scores, all positive: 1 is the last edge inside the budget."""
        return Pruner.score(self, model, task)

    def fit(self, model: MaskedModel, task: Task, size: int | float | None = None) -> Result:
        """Runs the optimisation: the mask has exactly the size asked for, and no dead ends.

        ``scores`` are the gates' ranking, all positive: 1 is the last edge inside the budget. Dead
        ends, earlier masks that did better and the local search make the mask differ from it.
        ``history`` has a row for every step kept: ``step``, ``loss``, ``density`` (of the gates),
        ``rate`` (the factor on learning rates) and what the method adds; ``notes`` has the mask's
        own ``loss`` on the training examples, where it was measured.

        Ctrl-C ends it with the mask of the gates as they are, or with one judged before that is
        better; ``stopped`` and ``notes`` say so, and a warning. Raises :class:`InputError` for a
        budget that no circuit can meet, a loss without a gradient and a run directory of another
        run, and :class:`NumericalError` with step and cause for a NaN.
        """
        require_model(model)
        if size is not None:
            some_edges(size, model.graph.num_edges)
            return self.sized(size).fit(model, task)
        count = self.count(model.graph)
        ablation = self._ablation(model, task)
        from_inputs = not cut_off_nodes_differ(ablation, task)
        if count is not None:
            require_feasible(model.graph, count, from_inputs=from_inputs)
        examples = task.batch_size if self.batch_size is None else self.batch_size
        seed, workers = self.chosen_seed, Workers.current(module_of(model))
        if self.loss == "mean_gap" and workers.world > 1:
            raise InputError(
                "loss='mean_gap' needs all examples of a batch in one process, here "
                f"{workers.world} share them; use 'task_gap', or one process"
            )
        run = Optimisation(
            recipe=self,
            model=model,
            task=task,
            ablation=ablation,
            loss=as_loss(self.loss, task),
            minibatches=MiniBatches(
                model, task, ablation, examples, seed, self.steps, self.cache, workers
            ),
            steps=self.steps,
            seed=seed,
            from_inputs=from_inputs,
            start=self._start(model, task),
            folder=self._folder(model, task, examples, workers),
            every=self.checkpoint_every,
            label=type(self).__name__,
        )
        with interruptible(run.asked):
            if count is None:
                from graphprune.search.minimal import minimal

                return minimal(run, self.scores)
            return self._finish(run, count, from_inputs)

    def _finish(self, run: Optimisation, count: int, from_inputs: bool) -> Result:
        mask, notes = self._select(run, count, from_inputs)
        notes |= {"steps": run.step, "cached": run.minibatches.caching, **run.say_stopped()}
        if run.best is not None:
            notes["loss"] = run.best[0]
        return Result(
            mask=mask,
            scores=self.scores(run, count),
            ablation=run.ablation,
            history=run.history,
            circuits=larger_circuits(run, mask),
            values={} if run.edge_gates is None else {"gates": run.edge_gates},
            stopped=run.stopped,
            notes=notes,
        )

    def _select(
        self, run: Optimisation, count: int, from_inputs: bool
    ) -> tuple[EdgeMask, dict[str, Any]]:
        """The best mask of ``count`` edges among those tried at a few points late in the run."""
        graph = run.model.graph
        passed = self.passed(graph, run.steps)
        # Masks judged with constants that were still to change do not compare.
        stops = [run.steps] if run.constants else self.points()
        for point in sorted({*stops, *passed.values()}):
            run.run(until=point)
            if run.stopped:
                break
            if run.step != point:
                continue  # passed before this run was resumed
            for size in [size for size, step in passed.items() if step == run.step]:
                kept = exact_budget(graph, run.values, size, from_inputs=from_inputs)
                run.path[size] = kept.values
            if point in stops:
                run.offer(exact_budget(graph, run.values, count, from_inputs=from_inputs))
            run.save()
        if run.stopped:  # judged beside the best so far, but kept out of the checkpoint
            run.offer(exact_budget(graph, run.values, count, from_inputs=from_inputs))
        assert run.best is not None
        loss, mask = run.best[0], EdgeMask(graph, run.best[1])
        rounds = 0 if run.stopped else self.rounds(run.model)
        if rounds:
            mask = refine(run, mask, rounds)
            run.offer(mask)
        return mask, {"loss_before_refining": loss} if rounds else {}

    def scores(self, run: Optimisation, count: int) -> EdgeScores:
        """The gates' ranking as positive scores, at least 1 for the ``count`` best.

        No gate says that an edge does harm: with a sign, the most firmly closed edges would stand
        first in every ranking by size.
        """
        values = run.values.double()
        last = torch.topk(values, count).values[-1]
        return EdgeScores(run.model.graph, strength(values - last), method=self.label)

    def rounds(self, model: MaskedModel) -> int:
        """Rounds of local search at the end; see :func:`~graphprune.search.refine.refine`."""
        return 0

    def passed(self, graph: ComputationalGraph, steps: int) -> dict[int, int]:
        """Sizes to keep a circuit of on the way down, and the step at which each is passed."""
        return {}

    def points(self) -> list[int]:
        """Steps at which a mask is made and judged; the last is ``steps``."""
        return [self.steps]

    # ---------------------------------------------------------------- parts

    def _folder(
        self, model: MaskedModel, task: Task, batch_size: int, workers: Workers
    ) -> RunDirectory | None:
        """The run directory, made by the main process before the others look into it."""
        if self.run_dir is None:
            return None
        belongs_to = identity(model, task, self._settings(batch_size, model.graph))
        found = RunDirectory(self.run_dir, belongs_to) if workers.is_main else None
        workers.barrier()
        return found or RunDirectory(self.run_dir, belongs_to)

    def _settings(self, batch_size: int, graph: ComputationalGraph) -> dict[str, Any]:
        hidden = {"run_dir", "cache", "checkpoint_every", "sparsity"}
        resolved = self.resolved()
        found = {f.name: getattr(resolved, f.name) for f in dataclasses.fields(self)}
        found |= {"batch_size": batch_size, "size": self.count(graph) or "minimal"}
        return {"method": type(self).__name__} | {k: v for k, v in found.items() if k not in hidden}

    def _ablation(self, model: MaskedModel, task: Task) -> Ablation:
        if self.ablation == "optimal":
            start = resolve_ablation(model, task, "mean")
            inside = require(model, LearnedConstants, "optimal ablation")
            return inside.learned_ablation(start)
        return resolve_ablation(model, task, self.chosen_ablation)

    def _start(self, model: MaskedModel, task: Task) -> StartingScores | None:
        given = self.warm_start
        if given is None:
            return None
        warm = given if isinstance(given, WarmStart) else WarmStart(given, "ranks")
        scores: Any = warm.scores
        if isinstance(scores, str):
            from graphprune.core.registry import make_method

            scores = make_method(scores)
        if isinstance(scores, Scorer):
            ablation = "mean" if self.ablation == "optimal" else self.ablation
            scorer = inherit(scores, ablation, self.batch_size, self.seed)
            scores = member_scores(scorer, model, task, "the warm start")
        if not isinstance(scores, EdgeScores):
            raise InputError(
                "warm_start must be EdgeScores, a scorer or a scorer's name, got "
                f"{type(scores).__name__}"
            )
        require_same_graph(model.graph, scores.graph, "the model and the warm start's scores")
        return StartingScores(scores.values, warm, self.chosen_seed, scores.noise)

    @property
    def start_density(self) -> float | None:
        """The share of open edges that the warm start asks for."""
        return self.warm_start.density if isinstance(self.warm_start, WarmStart) else None

    @abstractmethod
    def cold_gates(self, count: int, generator: torch.Generator) -> Tensor:
        """``[count]``: gates at the first step where nothing is known of their edges or nodes."""

    def parameters(self, graph: ComputationalGraph, start: StartingScores | None) -> Parameters:
        """Gates of edges (and senders), as the cold or the warm start has them."""
        generator = torch.Generator().manual_seed(self.chosen_seed)
        cold = self.cold_gates(graph.num_edges, generator)
        nodes = self.cold_gates(graph.num_nodes, generator) if self.gates_on_nodes else None
        gates = {"edges": first_gates(self.gate_kind, graph, cold, start, nodes)}
        return gates if nodes is None else {**gates, "nodes": nodes}

    @property
    def gates_on_nodes(self) -> bool:
        """Whether senders have gates too."""
        return bool(self.node_gates)

    def values(self, parameters: Parameters, graph: ComputationalGraph) -> Tensor:
        """The edges' gates; with gates on senders scores add up, and chances multiply."""
        return edge_ranking(self.gate_kind, parameters["edges"], parameters.get("nodes"), graph)

    def rate(self, moment: Moment) -> float:
        """Constant."""
        return 1.0

    def groups(
        self, gates: Iterable[Tensor], constants: list[Tensor], rate: float = 1e-2
    ) -> list[dict[str, Any]]:
        """Parameter groups of an optimiser: gates, and learned constants at their own rate."""
        found: list[dict[str, Any]] = [{"params": list(gates)}]
        if constants:
            found.append({"params": constants, "lr": rate, "weight_decay": 0.0})
        return found
