"""From a method to a mask: by the selector that `--select` names, or a pruner's own choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from graphprune.errors import InputError

if TYPE_CHECKING:
    from graphprune.core.mask import EdgeMask
    from graphprune.core.method import Method
    from graphprune.core.model import MaskedModel
    from graphprune.core.result import Result
    from graphprune.core.task import Task

__all__ = ["By", "Selection", "Ways", "find", "passes_by_bar", "selector_settings"]

By = Literal["abs", "signed"]
# The names of `graphprune.selection.selectors.SELECTORS`, here too so that help needs no torch.
Ways = Literal[
    "top", "greedy", "threshold", "nodes",
    "connected", "ilp", "pnr", "bootstrap", "influence", "polish",
]  # fmt: skip


def selector_settings(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Settings of ``--select name`` from ``NAME=VALUE``; raises :class:`InputError` for others."""
    from graphprune.selection.selectors import SELECTORS
    from graphprune.study.settings import hints_of, pairs, typed, unknown_setting

    chosen = pairs(texts, "--select-set")
    selector, what = SELECTORS[name], f"--select {name}"
    unknown = [key for key in chosen if key not in selector.settings]
    if unknown:
        shown = {key: f"default {p.default}" for key, p in selector.settings.items()}
        raise unknown_setting(what, unknown, shown)
    hints = hints_of(selector.choose)
    return {key: typed(key, text, hints.get(key, Any), what) for key, text in chosen.items()}


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
        from graphprune.selection.selectors import SELECTORS

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
        chosen = selector_settings(way, self.settings)
        if self.by is not None and SELECTORS[way].ranks_itself:
            raise InputError(f"--select {way} has a ranking of its own; leave --by out")
        if "share" in chosen and self.size is not None:
            raise InputError("--select-set share says how many edges are kept; leave --size out")
        if self.way == "nodes" and not isinstance(method, NodeScorer):
            raise InputError(f"method {name!r} scores no nodes; --select nodes is for nap, nap-ig")

    def to_dict(self) -> dict[str, Any]:
        """What was done, defaults filled in."""
        way = self.way or "top"
        record: dict[str, Any] = {"select": way, "by": self.by or "abs"}
        if way == "threshold":
            record["threshold"] = self.threshold
        else:
            record["size"] = 0.01 if self.size is None else self.size
        if self.settings:
            record["settings"] = selector_settings(way, self.settings)
            if "share" in record["settings"]:
                record.pop("size")
        return {**record, "prune_dead_ends": self.prune_dead_ends}


def find(method: Method, selection: Selection, model: MaskedModel, task: Task) -> Result:
    """Runs the method and selects the edges; ``notes["selected"]`` counts them before dead ends go.

    Raises :class:`InputError` where no edge is left.
    """
    from graphprune.core.method import Pruner
    from graphprune.selection.selectors import without_dead_ends
    from graphprune.util.progress import counted_in_passes

    with counted_in_passes(passes_by_bar(method, model)):
        if isinstance(method, Pruner):
            result = method.fit(model, task)
            assert result.mask is not None
            return replace(result, notes={**result.notes, "selected": result.mask.num_kept})
        mask, result = _selected(method, selection, model, task)
    chosen = mask.num_kept
    if selection.prune_dead_ends:
        mask = without_dead_ends(mask, ablation=method.chosen_ablation, task=task)
    if mask.num_kept == 0:
        raise InputError(
            f"no edge is left: of the {chosen} selected none lies on a path from the input to the "
            "output; a larger --size, --select greedy or --keep-dead-ends keeps more"
        )
    return replace(result, mask=mask, notes={**result.notes, "selected": chosen})


def _selected(
    method: Method, selection: Selection, model: MaskedModel, task: Task
) -> tuple[EdgeMask, Result]:
    """The edges that a ranking gives, dead ends included, and the ranking's own result."""
    from graphprune.core.method import NodeScorer
    from graphprune.core.result import Result
    from graphprune.core.scores import EdgeScores
    from graphprune.selection.selectors import SELECTORS, Candidates, cut_off_nodes_differ

    way, nodes = selection.way or "top", None
    if way == "nodes" and isinstance(method, NodeScorer):
        nodes = method.score_nodes(model, task)
        scores = EdgeScores.computed(model.graph, nodes.edge_values(), method=nodes.method)
        result = Result(None, scores, method.chosen_ablation)
    else:
        result = method.fit(model, task)
        assert result.scores is not None
        scores = result.scores
    candidates = Candidates(
        method,
        model,
        task,
        scores,
        size=0.01 if selection.size is None else selection.size,
        by=selection.by or "abs",
        from_inputs=not cut_off_nodes_differ(method.chosen_ablation, task),
        threshold=selection.threshold,
        nodes=nodes,
    )
    settings = selector_settings(way, selection.settings)
    return SELECTORS[way].choose(candidates, **settings), result


def passes_by_bar(method: Method, model: MaskedModel) -> dict[str, int]:
    """The passes of one item of each progress bar of a method, by what the bars are called.

    Raises :class:`InputError` for a number of points that is none.
    """
    from graphprune.core.method import Method
    from graphprune.methods.gradient import GradientScorer, integration_points
    from graphprune.methods.optimiser import MaskOptimiser
    from graphprune.methods.patching import IntegratedMaskGradient

    name = type(method).__name__
    if isinstance(method, GradientScorer):
        gates, _ = method.interpolation(model)
        return {name: 1 if gates is None else len(gates)}
    if isinstance(method, IntegratedMaskGradient):
        return {name: len(integration_points(method.steps, method.points_at)[0])}
    passes: dict[str, int] = {}
    if isinstance(method, MaskOptimiser):
        from graphprune.study.planned_passes import masks_a_step

        passes[name] = masks_a_step(method)
    for entry in fields(method):
        value = getattr(method, entry.name)
        for part in value if isinstance(value, tuple) else (value,):
            passes |= passes_by_bar(part, model) if isinstance(part, Method) else {}
    return passes
