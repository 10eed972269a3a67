"""The descent itself: which edges go at a threshold, found with as few runs as the answer allows.

An edge is cut for good if cutting it raises the loss by less than tau, else it stays. A call tries
many edges at once: which of them stay is guessed, and each row cuts its own edge and all earlier
ones of the call that are guessed to go. What the rows tell is right up to and including the first
edge that does not do as guessed; the next call begins behind it. Guesses change the time, never the
answer: every decision is measured, and one closer to tau than the outputs' noise is
made again exactly.

Several thresholds share a descent until they first disagree about an edge; each side then goes on
from there.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.search.checkpoint import RunDirectory, RunState
from graphprune.search.evaluators import LossEvaluator, Recheck
from graphprune.search.keep_prediction import KeepPredictor
from graphprune.search.order import readers
from graphprune.util.interrupts import interruptible
from graphprune.util.progress import bar

__all__ = ["Branch", "GreedyDescent", "Limits"]

log = logging.getLogger(__name__)

_SAVE_EVERY = 20.0  # seconds


@dataclass(eq=False)
class Branch:
    """A descent of the thresholds ``taus`` (ascending), ``at`` edges of the order decided.

    ``kept [E]`` bool; ``effects [E]`` float64: the rise of the loss that decided an edge, NaN where
    none was needed.
    """

    taus: tuple[float, ...]
    kept: Tensor
    effects: Tensor
    at: int = 0


@dataclass(frozen=True)
class _Decision:
    """An edge of a window: ``tried``, or cut with its dead reader; ``stays``: what is guessed."""

    edge: int
    tried: bool = True
    stays: bool = False


@dataclass(frozen=True)
class Limits:
    """When a call of :meth:`GreedyDescent.run` ends early; ``None``: never.

    ``candidates``: rows tried at once at most.
    """

    evaluations: int | None = None
    seconds: float | None = None
    candidates: int = 64


@dataclass(eq=False)
class GreedyDescent:
    """Descends all thresholds.

    Args:
        evaluator: gives losses quickly.
        rechecks: who decides near a threshold, the widest band first.
        speculative: whether calls try several edges; ``False`` is the plain loop.
        absolute: whether a change of the loss counts whatever its sign.
        drop_dead: whether edges into nodes that lead nowhere are cut untried.
        order: edges in the order they are decided in; edges of ``within`` alone.
        within: ``[E]`` bool, the circuit to begin with; ``None``: all edges.
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
        self._first = torch.zeros(edges, dtype=torch.bool)
        self._first[:1] = True
        self._first[turns] = True
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
                    self._recall(branch)
                    while branch.at < len(self.order) and len(branch.taus):
                        was = branch.at
                        self._advance(branch)
                        now = time.perf_counter()
                        self._spent = now - started
                        self.seconds = before + self._spent
                        shown.update(branch.at - was)
                        kept = int(branch.kept[self.order[: branch.at]].sum())
                        shown.set_postfix(kept=kept, runs=self.evaluations, refresh=False)
                        self.stopped = self._halt(bool(stop))
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

    def _recall(self, branch: Branch) -> None:
        """Makes the guesses those that the branch's own decisions suggest."""
        self._predictor = KeepPredictor(self.graph)
        for edge in self.order[: branch.at].tolist():
            gap = float(branch.effects[edge])
            if not math.isnan(gap):
                self._predictor.learn(edge, self._stays(gap, branch.taus[-1]))

    def _halt(self, asked: bool) -> str:
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
        tried = [some for some in window if some.tried]
        if not tried:
            self._pass(branch, window)
            return
        if self.evaluator.raise_precision(self._target[tried[0].edge]) or math.isnan(self._loss):
            self._loss = self.evaluator.loss()
            self.evaluations += 1
        goes = torch.tensor([not some.stays for some in tried])
        each = torch.eye(len(tried), dtype=torch.bool)
        cuts = goes.expand(len(tried), -1).tril(-1) | each
        losses = self.evaluator.without(torch.tensor([some.edge for some in tried]), cuts)
        self.evaluations += len(tried)
        self._take(branch, window, losses)

    # ---------------------------------------------------------------- one call

    def _window(self, branch: Branch) -> list[_Decision]:
        """The next edges in order, as many as pay: decisions expected for what the call costs."""
        most = min(self.limits.candidates, self.evaluator.most) if self.speculative else 1
        kept, window, paying = branch.kept.clone(), list[_Decision](), 0
        tried, right, expected, best = 0, 1.0, 0.0, 0.0
        at = branch.at
        while at < len(self.order) and tried < most:
            edge = int(self.order[at])
            if bool(self._first[at]):
                if tried and not self.evaluator.spans:
                    break
                if self.drop_dead and self._dead(self._target[edge], kept):
                    edges, paid = self.order[at : self._end[at]], paying == len(window)
                    window += [_Decision(edge, tried=False) for edge in edges.tolist()]
                    kept[edges] = False
                    paying, at = len(window) if paid else paying, self._end[at]
                    continue
            chance = self._predictor.stays(edge)
            window.append(_Decision(edge, stays=chance > 0.5))
            kept[edge] = chance > 0.5
            tried, at, expected = tried + 1, at + 1, expected + right
            right *= max(chance, 1.0 - chance)
            rate = expected / (self.evaluator.overhead + tried)
            if rate > best:
                best, paying = rate, len(window)
        return window[:paying]

    def _dead(self, node: int, kept: Tensor) -> bool:
        """Whether no kept path leads from the node to an output."""
        reached = self.graph.reachable(self.graph.output_nodes, kept.numpy(), backward=True)
        return not bool(reached[node])

    def _pass(self, branch: Branch, window: list[_Decision]) -> None:
        """Cuts untried edges."""
        edges = torch.tensor([some.edge for some in window], dtype=torch.int64)
        if len(edges):
            branch.kept[edges] = False
            self.evaluator.drop(edges)
            branch.at += len(edges)

    def _take(self, branch: Branch, window: list[_Decision], losses: list[float]) -> None:
        """Decides the window's edges one after another, up to the first that was guessed wrong."""
        before, last, taken = self._loss, -1, list[int]()
        steps, rows = iter(window), iter(enumerate(losses))
        for step in steps:
            goes = right = True
            if step.tried:
                row, loss = next(rows)
                goes = self._decide(branch, step.edge, loss - before)
                right = goes != step.stays
                last = row if goes else last
                before = before if step.stays else loss
            branch.at += 1
            if goes:
                branch.kept[step.edge] = False
                taken.append(step.edge)
            if not right:
                break
        for step in steps:
            if step.tried:
                _, loss = next(rows)
                self._predictor.hint(step.edge, self._stays(loss - before, branch.taus[-1]))
                before = before if step.stays else loss
        self._commit(taken, last, losses)

    def _decide(self, branch: Branch, edge: int, gap: float) -> bool:
        """Whether the edge goes; thresholds of the branch that keep it part from the others."""
        gap = self._gap(branch, edge, gap)
        branch.effects[edge] = gap
        stays = tuple(tau for tau in branch.taus if self._stays(gap, tau))
        goes = tuple(tau for tau in branch.taus if tau not in stays)
        if goes and stays:
            twin = Branch(stays, branch.kept.clone(), branch.effects.clone(), branch.at + 1)
            self.open.insert(0, twin)
            branch.taus = goes
        self._predictor.learn(edge, not goes)
        return bool(goes)

    def _stays(self, gap: float, tau: float) -> bool:
        return not (abs(gap) if self.absolute else gap) < tau

    def _commit(self, taken: list[int], last: int, losses: list[float]) -> None:
        if last >= 0:
            self.evaluator.cut(last)
            self._loss = losses[last]
        rest = [edge for edge in taken if bool(self.evaluator.kept[edge])]
        if rest:  # dead readers' edges, which stand in no row
            self.evaluator.drop(torch.tensor(rest))

    def _gap(self, branch: Branch, edge: int, gap: float) -> float:
        """The rise of the loss, measured exactly where a threshold is within the noise."""
        for recheck in self.rechecks:
            value = abs(gap) if self.absolute else gap
            if not any(recheck.concerns(value, tau) for tau in branch.taus):
                break
            gap = recheck.gap(branch.kept, edge, gap)
        return gap

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
        found = None if self.folder is None else self.folder.load()
        if found is None:
            return
        self.open, self.done = [], []
        for number, row in enumerate(found.notes["branches"]):
            branch = Branch(
                tuple(row["taus"]),
                found.tensors[f"kept.{number}"],
                found.tensors[f"effects.{number}"],
                int(row["at"]),
            )
            (self.open if row["state"] == "open" else self.done).append(branch)
        self.evaluations = int(found.notes["evaluations"])
        self.seconds = float(found.notes["seconds"])
        for check, (count, band) in zip(self.rechecks, found.notes["rechecks"], strict=True):
            check.count, check.band = int(count), float(band)
        log.info("resumed with %d branches", len(self.open))
