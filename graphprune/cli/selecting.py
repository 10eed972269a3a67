"""From a method to a mask: scores and a selection, or a pruner's own choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from graphprune.cli.ways import WAYS, By, Choice, check_exact, way_settings
from graphprune.errors import InputError

if TYPE_CHECKING:
    from graphprune.mask import EdgeMask
    from graphprune.methods.base import Method
    from graphprune.model import MaskedModel
    from graphprune.result import Result
    from graphprune.task import Task

__all__ = ["By", "Selection", "Ways", "find"]

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
        from graphprune.methods.base import NodeScorer, Pruner

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
    from graphprune.methods.base import Pruner
    from graphprune.selection import without_dead_ends

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
    from graphprune.methods.base import NodeScorer
    from graphprune.result import Result
    from graphprune.scores import EdgeScores
    from graphprune.selection import cut_off_nodes_differ

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
