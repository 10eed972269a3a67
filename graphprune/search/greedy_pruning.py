"""Greedy pruning at a threshold: edges are decided one after another, in as few runs as possible.

An edge is cut for good if cutting it raises the loss by less than tau, else it stays. A call tries
many edges at once: which of them stay is guessed, and each row cuts its own edge and all earlier
ones of the call that are guessed to go. What the rows tell is right up to and including the first
edge that does not do as guessed; the next call begins behind it. Guesses change the time, never the
answer: every decision is measured, and one closer to tau than the outputs' noise is
made again exactly.

Several thresholds share their decisions until they first disagree about an edge: there the branch
splits in two, and each goes on by itself.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import FormatError
from graphprune.search.checkpoint import RunDirectory, RunState
from graphprune.search.evaluators import LossEvaluator, Recheck
from graphprune.search.keep_prediction import KeepPredictor
from graphprune.search.order import readers
from graphprune.util.interrupts import interruptible
from graphprune.util.progress import bar

__all__ = ["Branch", "GreedyPruning", "Limits"]

log = logging.getLogger(__name__)

_SAVE_EVERY = 20.0  # seconds


class _BranchNotes(BaseModel):
    state: Literal["open", "done"]
    taus: list[float]
    at: NonNegativeInt


class _Notes(BaseModel):
    branches: list[_BranchNotes]
    evaluations: NonNegativeInt
    seconds: NonNegativeFloat
    rechecks: list[tuple[NonNegativeInt, float]]


@dataclass(eq=False)
class Branch:
    """The circuit of the thresholds ``taus`` (ascending) after ``at`` edges of the order.

    ``kept [E]`` bool; ``effects [E]`` float64: the rise of the loss that decided an edge, NaN where
    none was needed.
    """

    taus: tuple[float, ...]
    kept: Tensor
    effects: Tensor
    at: int = 0


@dataclass(frozen=True)
class _Candidate:
    """An edge of a window: ``tried`` by a run, or cut unseen since its reader leads nowhere."""

    edge: int
    tried: bool = True
    guessed_to_stay: bool = False


@dataclass(frozen=True)
class Limits:
    """When a call of :meth:`GreedyPruning.run` ends early; ``None`` means never.

    ``candidates``: rows tried at once at most.
    """

    evaluations: int | None = None
    seconds: float | None = None
    candidates: int = 64


@dataclass(eq=False)
class GreedyPruning:
    """Prunes the edges of a graph one by one, for all thresholds at once.

    Args:
        evaluator: gives losses quickly.
        rechecks: who decides near a threshold, the widest band first.
        speculative: whether calls try several edges; ``False`` is the plain loop.
        absolute: whether a change of the loss counts whatever its sign.
        drop_dead: whether edges into nodes that lead nowhere are cut untried.
        order: edges in the order they are decided in; edges of ``within`` alone.
        within: ``[E]`` bool, the circuit to begin with; ``None`` means all edges.
    """

    graph: ComputationalGraph
    order: Tensor
    evaluator: LossEvaluator
    rechecks: Sequence[Recheck]
    taus: Sequence[float]
    speculative: bool = True
    absolute: bool = False
    drop_dead: bool = True
    limits: Limits = field(default_factory=Limits)
    folder: RunDirectory | None = None
    label: str = "ACDC"
    within: Tensor | None = None

    def __post_init__(self) -> None:
        edges, everything = len(self.order), self.graph.num_edges
        fresh = Branch(
            tuple(sorted(set(self.taus))),
            torch.ones(everything, dtype=torch.bool)
            if self.within is None
            else self.within.clone(),  # the search writes into it
            torch.full((everything,), float("nan"), dtype=torch.float64),
        )
        self.open, self.done = [fresh], list[Branch]()
        self.evaluations, self.seconds = 0, 0.0
        self.stopped = ""
        self._predictor = KeepPredictor(self.graph)
        self._loss = math.nan
        self._evaluated, self._spent = 0, 0.0  # when this call began, and since
        self._target = self.graph.edge_index[1].tolist()
        reader = readers(self.graph)[self.order]
        turns = torch.nonzero(reader[1:] != reader[:-1])[:, 0] + 1
        # For each place of the order: whether a reader's edges begin there, and where they end.
        self._begins = torch.zeros(edges, dtype=torch.bool)
        self._begins[:1] = True
        self._begins[turns] = True
        ends = torch.cat([turns, torch.tensor([edges])])
        self._end = ends[torch.searchsorted(ends, torch.arange(edges), right=True)].tolist()
        self._resume()

    # ---------------------------------------------------------------- running

    @torch.no_grad()
    def run(self) -> None:
        """Until every threshold is decided, a limit is met or Ctrl-C is pressed (``stopped``)."""
        asked: list[int] = []
        started, before = time.perf_counter(), self.seconds
        saved, self._evaluated, self._spent = started, self.evaluations, 0.0
        with interruptible(asked) as stop:
            while self.open:
                branch = self.open[-1]
                with bar(self._describe(branch), len(self.order), branch.at) as shown:
                    self.evaluator.start(branch.kept)
                    self._loss = math.nan
                    self._learn_decisions(branch)
                    while branch.at < len(self.order) and len(branch.taus):
                        was = branch.at
                        self._advance(branch)
                        now = time.perf_counter()
                        self._spent = now - started
                        self.seconds = before + self._spent
                        shown.update(branch.at - was)
                        kept = int(branch.kept[self.order[: branch.at]].sum())
                        shown.set_postfix(kept=kept, runs=self.evaluations, refresh=False)
                        self.stopped = self._reason_to_stop(bool(stop))
                        if self.stopped or now - saved > _SAVE_EVERY:
                            self.save()
                            saved = time.perf_counter()
                        if self.stopped:
                            after = "a run directory (run_dir=, --run-dir) lets a run go on"
                            if self.folder is not None:
                                after = f"the same run goes on from {self.folder.folder}"
                            log.warning("%s; undecided edges are kept; %s", self.stopped, after)
                            return
                self.open.remove(branch)
                self.done.append(branch)
                self.save()

    def _describe(self, branch: Branch) -> str:
        taus = ", ".join(f"{tau:g}" for tau in branch.taus[:3])
        return f"{self.label} tau {taus}{' ...' if len(branch.taus) > 3 else ''}"

    def _learn_decisions(self, branch: Branch) -> None:
        """Makes the guesses those that the branch's own decisions suggest."""
        self._predictor = KeepPredictor(self.graph)
        for edge in self.order[: branch.at].tolist():
            rise = float(branch.effects[edge])
            if not math.isnan(rise):
                self._predictor.learn(edge, self._stays(rise, branch.taus[-1]))

    def _reason_to_stop(self, asked: bool) -> str:
        limits, evaluated = self.limits, self.evaluations - self._evaluated
        if asked:
            why = "interrupted"
        elif limits.evaluations is not None and evaluated >= limits.evaluations:
            why = f"{evaluated} evaluations done of max_evaluations={limits.evaluations}"
        elif limits.seconds is not None and self._spent >= limits.seconds:
            why = f"max_seconds={limits.seconds:g} have passed"
        else:
            return ""
        branch = self.open[-1]
        if branch.at >= len(self.order) and len(self.open) == 1:
            return ""
        return f"stopped at edge {branch.at} of {len(self.order)}: {why}"

    def _advance(self, branch: Branch) -> None:
        """One call's worth of decisions."""
        window = self._window(branch)
        tried = [candidate for candidate in window if candidate.tried]
        if not tried:
            self._cut_untried(branch, window)
            return
        if self.evaluator.raise_precision(self._target[tried[0].edge]) or math.isnan(self._loss):
            self._loss = self.evaluator.loss()
            self.evaluations += 1
        guessed_to_go = torch.tensor([not candidate.guessed_to_stay for candidate in tried])
        own = torch.eye(len(tried), dtype=torch.bool)
        cuts = guessed_to_go.expand(len(tried), -1).tril(-1) | own
        edges = torch.tensor([candidate.edge for candidate in tried])
        losses = self.evaluator.without(edges, cuts)
        self.evaluations += len(tried)
        self._decide_window(branch, window, losses)

    # ---------------------------------------------------------------- one call

    def _window(self, branch: Branch) -> list[_Candidate]:
        """The next edges in order, as many as pay: decisions expected for what the call costs."""
        most = min(self.limits.candidates, self.evaluator.most) if self.speculative else 1
        kept, window, paying = branch.kept.clone(), list[_Candidate](), 0
        # ``all_right``: the chance that every guess so far is right, so that a next row counts.
        tried, all_right, expected, best = 0, 1.0, 0.0, 0.0
        at = branch.at
        while at < len(self.order) and tried < most:
            edge = int(self.order[at])
            if bool(self._begins[at]):
                if tried and not self.evaluator.spans:
                    break
                if self.drop_dead and self._leads_nowhere(self._target[edge], kept):
                    edges, paid = self.order[at : self._end[at]], paying == len(window)
                    window += [_Candidate(edge, tried=False) for edge in edges.tolist()]
                    kept[edges] = False
                    paying, at = len(window) if paid else paying, self._end[at]
                    continue
            chance = self._predictor.stays(edge)
            window.append(_Candidate(edge, guessed_to_stay=chance > 0.5))
            kept[edge] = chance > 0.5
            tried, at, expected = tried + 1, at + 1, expected + all_right
            all_right *= max(chance, 1.0 - chance)
            rate = expected / (self.evaluator.overhead + tried)
            if rate > best:
                best, paying = rate, len(window)
        return window[:paying]

    def _leads_nowhere(self, node: int, kept: Tensor) -> bool:
        """Whether no kept path leads from the node to an output."""
        reached = self.graph.reachable(self.graph.output_nodes, kept.numpy(), backward=True)
        return not bool(reached[node])

    def _cut_untried(self, branch: Branch, window: list[_Candidate]) -> None:
        edges = torch.tensor([candidate.edge for candidate in window], dtype=torch.int64)
        if len(edges):
            branch.kept[edges] = False
            self.evaluator.drop(edges)
            branch.at += len(edges)

    def _decide_window(self, branch: Branch, window: list[_Candidate], losses: list[float]) -> None:
        """Decides the window's edges one after another, up to the first that was guessed wrong."""
        baseline, last_cut, cut = self._loss, -1, list[int]()
        candidates, rows = iter(window), iter(enumerate(losses))
        for candidate in candidates:
            is_cut = as_guessed = True
            if candidate.tried:
                row, loss = next(rows)
                is_cut = self._decide(branch, candidate.edge, loss - baseline)
                as_guessed = is_cut != candidate.guessed_to_stay
                last_cut = row if is_cut else last_cut
                baseline = baseline if candidate.guessed_to_stay else loss
            branch.at += 1
            if is_cut:
                branch.kept[candidate.edge] = False
                cut.append(candidate.edge)
            if not as_guessed:
                break
        for candidate in candidates:
            if candidate.tried:
                _, loss = next(rows)
                stays = self._stays(loss - baseline, branch.taus[-1])
                self._predictor.hint(candidate.edge, stays)
                baseline = baseline if candidate.guessed_to_stay else loss
        if last_cut >= 0:
            self.evaluator.cut(last_cut)
            self._loss = losses[last_cut]
        rest = [edge for edge in cut if bool(self.evaluator.kept[edge])]
        if rest:  # edges into readers that lead nowhere, which stand in no row
            self.evaluator.drop(torch.tensor(rest))

    def _decide(self, branch: Branch, edge: int, rise: float) -> bool:
        """Whether the edge is cut; thresholds of the branch that keep it part from the others."""
        rise = self._checked_rise(branch, edge, rise)
        branch.effects[edge] = rise
        keeping = tuple(tau for tau in branch.taus if self._stays(rise, tau))
        cutting = tuple(tau for tau in branch.taus if tau not in keeping)
        if cutting and keeping:
            twin = Branch(keeping, branch.kept.clone(), branch.effects.clone(), branch.at + 1)
            self.open.insert(0, twin)
            branch.taus = cutting
        self._predictor.learn(edge, not cutting)
        return bool(cutting)

    def _stays(self, rise: float, tau: float) -> bool:
        return not (abs(rise) if self.absolute else rise) < tau

    def _checked_rise(self, branch: Branch, edge: int, rise: float) -> float:
        """The rise of the loss, measured exactly where a threshold is within the noise."""
        for recheck in self.rechecks:
            value = abs(rise) if self.absolute else rise
            if not any(recheck.concerns(value, tau) for tau in branch.taus):
                break
            rise = recheck.rise(branch.kept, edge, rise)
        return rise

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Writes all branches, where there is a run directory."""
        if self.folder is None:
            return
        tensors: dict[str, Tensor] = {}
        rows: list[dict[str, Any]] = []
        for name, branches in (("open", self.open), ("done", self.done)):
            for branch in branches:
                number = len(rows)
                tensors[f"kept.{number}"] = branch.kept
                tensors[f"effects.{number}"] = branch.effects
                rows.append({"state": name, "taus": list(branch.taus), "at": branch.at})
        notes = {
            "branches": rows,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "rechecks": [[check.count, check.band] for check in self.rechecks],
        }
        self.folder.save(RunState(sum(b.at for b in (*self.open, *self.done)), tensors, notes))

    def _resume(self) -> None:
        saved = None if self.folder is None else self.folder.load()
        if saved is None or self.folder is None:
            return
        notes = self.folder.validated(_Notes, saved)
        self.open, self.done = [], []
        fits = len(notes.rechecks) == len(self.rechecks)
        for number, row in enumerate(notes.branches):
            kept, effects = (saved.tensors.get(f"{name}.{number}") for name in ("kept", "effects"))
            if kept is None or effects is None:
                fits = False
                break
            fits &= kept.shape == effects.shape == (self.graph.num_edges,)
            fits &= kept.dtype == torch.bool and row.at <= len(self.order)
            branch = Branch(tuple(row.taus), kept, effects, row.at)
            (self.open if row.state == "open" else self.done).append(branch)
        if not fits:
            raise FormatError(
                f"the checkpoint in {self.folder.folder} does not belong to this search: its "
                "branches are of other edges or other rechecks"
            )
        self.evaluations, self.seconds = notes.evaluations, notes.seconds
        for check, (count, band) in zip(self.rechecks, notes.rechecks, strict=True):
            check.count, check.band = count, band
        log.info("resumed with %d branches", len(self.open))
