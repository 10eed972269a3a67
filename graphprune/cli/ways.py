"""Ways from scores to a mask that `--select` names; keyword arguments are `--select-set`'s."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from graphprune.errors import InputError

if TYPE_CHECKING:
    from graphprune.mask import EdgeMask
    from graphprune.model import MaskedModel
    from graphprune.scores import EdgeScores
    from graphprune.task import Task
else:  # types of keyword arguments are looked up when settings are read
    EdgeMask = EdgeScores = MaskedModel = Task = Any

__all__ = ["WAYS", "By", "Choice", "check_exact", "way_settings"]

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
    from graphprune.selection_bootstrap import bootstrap_scores

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
    from graphprune.methods.base import ablation_of
    from graphprune.selection_polish import polish as run

    return run(
        choice.model, choice.task, choice.scores, choice.size, pool=pool, metric=metric,
        ablation=ablation_of(choice.method), batch_size=choice.method.batch_size, halvings=halvings,
    )  # fmt: skip


WAYS: dict[str, Callable[..., EdgeMask]] = {
    way.__name__: way for way in (top, greedy, connected, ilp, pnr, bootstrap, influence, polish)
}


def way_settings(way: str, texts: Sequence[str]) -> dict[str, Any]:
    """Settings of ``--select way`` from ``NAME=VALUE``; raises :class:`InputError` for others."""
    from graphprune.cli.settings import hints_of, pairs, typed, unknown_setting

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
