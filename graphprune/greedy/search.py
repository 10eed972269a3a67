"""The descent itself: which edges go at a threshold, found with as few runs as the answer allows.

An edge is cut for good if cutting it raises the loss by less than tau, else it stays. Rows that cut
the first, first two, ... of the next edges give many decisions at once: all are right up to and
including the first edge that stays. Where most edges stay, rows that each cut one edge are right up
to the first that goes. Width and kind of a call follow the share of edges that stay; they change
the time, never the answer: a decision closer to tau than the outputs' noise goes to the referee.

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

from graphprune.graph import ComputationalGraph
from graphprune.optimise.checkpoint import Checkpoint, RunDirectory
from graphprune.optimise.loop import interruptible
from graphprune.progress import bar

from .judge import Judge, Referee
from .order import readers

__all__ = ["Branch", "Limits", "Search"]

log = logging.getLogger(__name__)

_SAVE_EVERY = 20.0  # seconds
_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


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
class Limits:
    """When a call of :meth:`Search.run` ends early; ``None``: never.

    ``candidates``: rows tried at once at most.
    """

    evaluations: int | None = None
    seconds: float | None = None
    candidates: int = 64


@dataclass(eq=False)
class Search:
    """Descends all thresholds.

    Args:
        judge: gives losses quickly.
        referee: decides within ``band`` of a threshold; ``None``: nobody does.
        speculative: whether calls try several edges; ``False`` is the plain loop.
        absolute: whether a change of the loss counts whatever its sign.
        drop_dead: whether edges into nodes that lead nowhere are cut untried.
    """

    graph: ComputationalGraph
    order: Tensor
    judge: Judge
    referee: Referee | None
    band: float
    taus: Sequence[float]
    speculative: bool = True
    absolute: bool = False
    drop_dead: bool = True
    limits: Limits = field(default_factory=Limits)
    folder: RunDirectory | None = None
    label: str = "ACDC"

    def __post_init__(self) -> None:
        edges = self.graph.num_edges
        fresh = Branch(
            tuple(sorted(set(self.taus))),
            torch.ones(edges, dtype=torch.bool),
            torch.full((edges,), float("nan"), dtype=torch.float64),
        )
        self.open, self.done = [fresh], list[Branch]()
        self.evaluations, self.rechecks, self.seconds = 0, 0, 0.0
        self.stopped = ""
        self._stay = 0.1  # share of edges that stayed, of late
        self._loss = math.nan
        self._evaluated, self._spent = 0, 0.0  # when this call began, and since
        self._targets = self.graph.edge_index[1][self.order].tolist()
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
                with bar(self._describe(branch), self.graph.num_edges, branch.at) as shown:
                    self.judge.start(branch.kept)
                    self._loss = math.nan
                    while branch.at < self.graph.num_edges and len(branch.taus):
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
                            log.warning("%s; undecided edges are kept", self.stopped)
                            return
                self.open.remove(branch)
                self.done.append(branch)
                self.save()

    def _describe(self, branch: Branch) -> str:
        taus = ", ".join(f"{tau:g}" for tau in branch.taus[:3])
        return f"{self.label} tau {taus}{' ...' if len(branch.taus) > 3 else ''}"

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
        if branch.at >= self.graph.num_edges and len(self.open) == 1:
            return ""
        return f"stopped at edge {branch.at} of {self.graph.num_edges}: {why}"

    def _advance(self, branch: Branch) -> None:
        """One call's worth of decisions."""
        width, together = self._plan() if self.speculative else (1, True)
        window = self._window(branch, width, together)
        tried = [edge for edge, tested in window if tested]
        if not tried:
            self._pass(branch, window)
            return
        if math.isnan(self._loss):
            self._loss = self.judge.loss()
            self.evaluations += 1
        losses = self.judge.without(torch.tensor(tried), together=together)
        self.evaluations += len(tried)
        self._take(branch, window, losses, together)

    def _plan(self) -> tuple[int, bool]:
        """How many edges to try in one call, and whether together: what is decided per cost."""
        most = min(self.limits.candidates, self.judge.most)
        best, found = 0.0, (1, True)
        for together, ends in ((True, self._stay), (False, 1.0 - self._stay)):
            ends = min(max(ends, 1e-3), 1.0)
            for width in (w for w in _WIDTHS if w <= most):
                decided = (1.0 - (1.0 - ends) ** width) / ends
                rate = decided / (self.judge.overhead + width)
                if rate > best * (1 + 1e-9):
                    best, found = rate, (width, together)
        return found

    # ---------------------------------------------------------------- one call

    def _window(self, branch: Branch, width: int, together: bool) -> list[tuple[int, bool]]:
        """The next edges in order, and whether each is tried or cut with its dead reader."""
        kept, window, tried = branch.kept.clone(), list[tuple[int, bool]](), 0
        at = branch.at
        while at < len(self.order) and tried < width:
            end = self._end[at]
            begins = bool(self._first[at])
            if begins and tried and not (together and self.judge.spans):
                break
            if begins and self.drop_dead and self._dead(self._targets[at], kept):
                edges = self.order[at:end]
                window += [(edge, False) for edge in edges.tolist()]
                kept[edges] = False
                at = end
                continue
            stop = min(end, at + width - tried)
            edges = self.order[at:stop]
            window += [(edge, True) for edge in edges.tolist()]
            kept[edges] = False
            tried += stop - at
            at = stop
        return window

    def _dead(self, node: int, kept: Tensor) -> bool:
        """Whether no kept path leads from the node to an output."""
        reached = self.graph.reachable(self.graph.output_nodes, kept.numpy(), backward=True)
        return not bool(reached[node])

    def _pass(self, branch: Branch, window: list[tuple[int, bool]]) -> None:
        """Cuts untried edges."""
        edges = torch.tensor([edge for edge, _ in window], dtype=torch.int64)
        if len(edges):
            branch.kept[edges] = False
            self.judge.drop(edges)
            branch.at += len(edges)

    def _take(
        self,
        branch: Branch,
        window: list[tuple[int, bool]],
        losses: list[float],
        together: bool,
    ) -> None:
        """Decides the window's edges one after another, as far as the call's rows are right."""
        before, row, last, decided, stayed = self._loss, -1, -1, 0, 0
        taken: list[int] = []  # edges cut since the last commitment, tried or not
        valid = True
        for edge, tested in window:
            if not valid:
                break
            if not tested:
                taken.append(edge)
                branch.kept[edge] = False
                branch.at += 1
                continue
            row += 1
            gap = self._gap(branch, edge, losses[row] - before)
            goes = [tau for tau in branch.taus if (abs(gap) if self.absolute else gap) < tau]
            stays = [tau for tau in branch.taus if tau not in goes]
            branch.effects[edge] = gap
            decided += 1
            if goes and stays:
                self._split(branch, edge, stays)
                branch.taus = tuple(goes)
            branch.at += 1
            if goes:
                branch.kept[edge] = False
                taken.append(edge)
                last, valid = row, together
                if together:
                    before = losses[row]
            else:
                stayed += 1
                valid = not together
        self._commit(taken, last, losses)
        self._stay += min(1.0, 0.05 * decided) * (stayed / max(decided, 1) - self._stay)

    def _commit(self, taken: list[int], last: int, losses: list[float]) -> None:
        if last >= 0:
            self.judge.cut(last)
            self._loss = losses[last]
        rest = [edge for edge in taken if bool(self.judge.kept[edge])]
        if rest:  # dead readers' edges, which stand in no row
            self.judge.drop(torch.tensor(rest))

    def _gap(self, branch: Branch, edge: int, gap: float) -> float:
        """The rise of the loss, from the referee where a threshold is within the noise."""
        value = abs(gap) if self.absolute else gap
        if self.referee is None or all(abs(value - tau) > self.band for tau in branch.taus):
            return gap
        self.rechecks += 1
        with_it = self.referee.loss(branch.kept)
        less = branch.kept.clone()
        less[edge] = False
        exact = self.referee.loss(less) - with_it
        if abs(exact - gap) > 0.5 * self.band:
            self.band = 4.0 * abs(exact - gap)
            log.info("noise %.2g at edge %d: band now %.2g", exact - gap, edge, self.band)
        return exact

    def _split(self, branch: Branch, edge: int, stays: list[float]) -> None:
        """Thresholds that keep an edge go on by themselves, later."""
        twin = Branch(tuple(stays), branch.kept.clone(), branch.effects.clone(), branch.at + 1)
        self.open.insert(0, twin)

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
            "rechecks": self.rechecks,
            "seconds": self.seconds,
            "band": self.band,
        }
        self.folder.save(Checkpoint(sum(b.at for b in (*self.open, *self.done)), tensors, notes))

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
        self.rechecks = int(found.notes["rechecks"])
        self.seconds = float(found.notes["seconds"])
        self.band = float(found.notes["band"])
        log.info("resumed with %d branches", len(self.open))
