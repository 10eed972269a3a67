"""From a method to a mask: scores and a selection, or a pruner's own choice.

The ways from scores to a mask are functions that `--select` names; their keyword arguments are
`--select-set`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from graphprune.errors import InputError

if TYPE_CHECKING:
    from graphprune.core.mask import EdgeMask
    from graphprune.core.method import Method
    from graphprune.core.model import MaskedModel
    from graphprune.core.result import Result
    from graphprune.core.scores import EdgeScores
    from graphprune.core.task import Task
else:  # types of the ways' keyword arguments are looked up when settings are read
    EdgeMask = EdgeScores = MaskedModel = Task = Any

__all__ = ["WAYS", "By", "Choice", "Selection", "Ways", "check_exact", "find", "way_settings"]

By = Literal["abs", "signed"]


@dataclass(frozen=True)
class Choice:
    """What edges are chosen from, and how many.

    ``from_inputs``: whether a node that no kept path reaches from the input counts as cut.
    """

    method: Any
    model: MaskedModel
    task: Task
    scores: EdgeScores
    size: int | float
    by: By
    from_inputs: bool


def top(choice: Choice) -> EdgeMask:
    """The best edges."""
    return choice.scores.top(choice.size, by=choice.by)


def greedy(choice: Choice) -> EdgeMask:
    """Grown from the output."""
    return choice.scores.greedy(choice.size, by=choice.by)


def connected(choice: Choice) -> EdgeMask:
    """The best edges, none a dead end."""
    return choice.scores.connected(choice.size, by=choice.by, from_inputs=choice.from_inputs)


def ilp(choice: Choice, *, positives: float = 0.0, time_limit: float | None = 300.0) -> EdgeMask:
    """The best connected circuit, by integer programming."""
    return choice.scores.ilp(
        choice.size, choice.by, positives=positives, from_inputs=choice.from_inputs,
        time_limit=time_limit,
    )  # fmt: skip


def pnr(choice: Choice, *, positives: float = 0.7, connected: bool = True) -> EdgeMask:
    """A share of positive edges first."""
    return choice.scores.pnr(
        choice.size, positives, connected=connected, from_inputs=choice.from_inputs
    )


def bootstrap(
    choice: Choice,
    *,
    resamples: int = 10,
    blocks: int | None = None,
    level: float = 0.95,
    kind: Literal["t", "percentile", "paper"] = "t",
    connected: bool = True,
    seed: int = 0,
) -> EdgeMask:
    """Edges told apart from 0 first."""
    from graphprune.selection.bootstrap import bootstrap_scores

    found = bootstrap_scores(
        choice.method, choice.model, choice.task, resamples=resamples, blocks=blocks, seed=seed
    )
    return found.select(
        choice.size, choice.by, level=level, kind=kind, connected=connected,
        from_inputs=choice.from_inputs,
    )  # fmt: skip


def influence(choice: Choice, *, share: float | None = None, connected: bool = True) -> EdgeMask:
    """By influence on the output through all paths; ``share``: as many as make that much up."""
    if share is not None:
        return choice.scores.cumulative(share)
    ranked = choice.scores.influence()
    if not connected:
        return ranked.top(choice.size, by=choice.by)
    return ranked.connected(choice.size, choice.by, from_inputs=choice.from_inputs)


def polish(choice: Choice, *, pool: float = 2.0, metric: str = "kl", halvings: int = 6) -> EdgeMask:
    """From ``pool`` times as many edges by what cutting costs."""
    from graphprune.core.method import ablation_of
    from graphprune.methods.polish import polish as run

    return run(
        choice.model, choice.task, choice.scores, choice.size, pool=pool, metric=metric,
        ablation=ablation_of(choice.method), batch_size=choice.method.batch_size, halvings=halvings,
    )  # fmt: skip


WAYS: dict[str, Callable[..., EdgeMask]] = {
    way.__name__: way for way in (top, greedy, connected, ilp, pnr, bootstrap, influence, polish)
}


def way_settings(way: str, texts: Sequence[str]) -> dict[str, Any]:
    """Settings of ``--select way`` from ``NAME=VALUE``; raises :class:`InputError` for others."""
    from graphprune.study.settings import hints_of, pairs, typed, unknown_setting

    chosen = pairs(texts, "--select-set")
    parameters = inspect.signature(WAYS[way]).parameters if way in WAYS else {}
    known = {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    what = f"--select {way}"
    unknown = [name for name in chosen if name not in known]
    if unknown:
        shown = {name: f"default {p.default}" for name, p in known.items()}
        raise unknown_setting(what, unknown, shown)
    hints = hints_of(WAYS[way]) if way in WAYS else {}
    return {name: typed(name, text, hints.get(name, Any), what) for name, text in chosen.items()}


def check_exact(way: str, by: By | None) -> None:
    """Raises for a ranking that a way does not read."""
    if by is not None and way in ("pnr", "polish"):
        raise InputError(f"--select {way} has a ranking of its own; leave --by out")


Ways = Literal[
    "top", "greedy", "threshold", "nodes",
    "connected", "ilp", "pnr", "bootstrap", "influence", "polish",
]  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """How scores become a mask; ``None``: not said on the command line."""

    way: Ways | None = None
    by: By | None = None
    size: int | float | None = None
    threshold: float | None = None
    prune_dead_ends: bool = True
    settings: tuple[str, ...] = ()

    def check(self, method: Method, name: str) -> None:
        """Raises where the options do not fit each other or the method, before anything runs."""
        from graphprune.core.method import NodeScorer, Pruner

        if isinstance(method, Pruner):
            given = (self.way, self.by, self.threshold)
            if any(option is not None for option in given):
                raise InputError(
                    f"method {name!r} chooses the edges itself; --select, --by and --threshold are "
                    "for methods that give scores"
                )
            if self.settings:
                raise InputError(f"--select-set is for --select; method {name!r} takes --set alone")
            if not self.prune_dead_ends:
                raise InputError(f"method {name!r} keeps no dead ends; leave --keep-dead-ends out")
            method.sized(self.size)
            return
        if self.way == "threshold" and self.threshold is None:
            raise InputError("--select threshold needs --threshold")
        if self.way == "threshold" and self.size is not None:
            raise InputError("--select threshold keeps what --threshold says; leave --size out")
        if self.way != "threshold" and self.threshold is not None:
            raise InputError("--threshold is for --select threshold")
        way = self.way or "top"
        chosen = way_settings(way, self.settings)
        check_exact(way, self.by)
        if "share" in chosen and self.size is not None:
            raise InputError("--select-set share says how many edges are kept; leave --size out")
        if self.way == "nodes" and not isinstance(method, NodeScorer):
            raise InputError(f"method {name!r} scores no nodes; --select nodes is for nap, nap-ig")

    def to_dict(self) -> dict[str, Any]:
        """What was done, defaults filled in."""
        way = self.way or "top"
        done: dict[str, Any] = {"select": way, "by": self.by or "abs"}
        if way == "threshold":
            done["threshold"] = self.threshold
        else:
            done["size"] = 0.01 if self.size is None else self.size
        if self.settings:
            done["settings"] = way_settings(way, self.settings)
            if "share" in done["settings"]:
                done.pop("size")
        return {**done, "prune_dead_ends": self.prune_dead_ends}


def find(method: Method, selection: Selection, model: MaskedModel, task: Task) -> Result:
    """Runs the method and selects the edges; ``notes["selected"]`` counts them before dead ends go.

    Raises :class:`InputError` where no edge is left.
    """
    from graphprune.core.method import Pruner
    from graphprune.selection.connect import without_dead_ends

    if isinstance(method, Pruner):
        found = method.fit(model, task)
        assert found.mask is not None
        return replace(found, notes={**found.notes, "selected": found.mask.num_kept})
    mask, found = _selected(method, selection, model, task)
    chosen = mask.num_kept
    if selection.prune_dead_ends:
        mask = without_dead_ends(mask, ablation=method.chosen_ablation, task=task)
    if mask.num_kept == 0:
        raise InputError(
            f"no edge is left: of the {chosen} selected none lies on a path from the input to the "
            "output; a larger --size, --select greedy or --keep-dead-ends keeps more"
        )
    return replace(found, mask=mask, notes={**found.notes, "selected": chosen})


def _selected(
    method: Method, selection: Selection, model: MaskedModel, task: Task
) -> tuple[EdgeMask, Result]:
    """The edges that a ranking gives, dead ends included, and the ranking's own result."""
    from graphprune.core.method import NodeScorer
    from graphprune.core.result import Result
    from graphprune.core.scores import EdgeScores
    from graphprune.selection.connect import cut_off_nodes_differ

    by: By = selection.by or "abs"
    size = 0.01 if selection.size is None else selection.size
    way = selection.way or "top"
    if way == "nodes" and isinstance(method, NodeScorer):
        nodes = method.score_nodes(model, task)
        ranked = EdgeScores.computed(model.graph, nodes.edge_values(), method=nodes.method)
        return nodes.top(size, by=by), Result(None, ranked, method.chosen_ablation)
    found = method.fit(model, task)
    scores = found.scores
    assert scores is not None
    if way == "threshold" and selection.threshold is not None:
        return scores.threshold(selection.threshold, by=by), found
    from_inputs = not cut_off_nodes_differ(method.chosen_ablation, task)
    choice = Choice(method, model, task, scores, size, by, from_inputs)
    return WAYS[way](choice, **way_settings(way, selection.settings)), found
