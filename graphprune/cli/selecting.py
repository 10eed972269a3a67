"""From a method to a mask: scores and a selection, or a pruner's own choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from graphprune.cli.ways import WAYS, By, Choice, check_exact, way_settings
from graphprune.errors import InputError

if TYPE_CHECKING:
    from graphprune.mask import EdgeMask
    from graphprune.model import MaskedModel
    from graphprune.scores import EdgeScores
    from graphprune.task import Task

__all__ = ["By", "Found", "Selection", "Ways", "find", "sized"]

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

    def check(self, method: Any, name: str) -> None:
        """Raises where the options do not fit each other or the method, before anything runs."""
        if hasattr(method, "prune"):
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
            if self.size is not None and not _takes_size(method):
                raise InputError(f"method {name!r} takes no --size; see its settings")
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
        if self.way == "nodes" and not hasattr(method, "score_nodes"):
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


@dataclass(frozen=True)
class Found:
    """A mask, the scores if there are any, and how many edges were selected before dead ends went.

    ``ablation`` is what the mask was found under, where it was learned; ``stopped`` says why the
    search ended early; ``notes`` are a mask optimiser's own.
    """

    mask: EdgeMask
    scores: EdgeScores | None
    selected: int
    ablation: Any = None
    stopped: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


def _takes_size(method: Any) -> bool:
    return type(method).sized is not Pruner.sized


def sized(method: Any, size: int | float | None) -> Any:
    """A mask optimiser with ``--size`` as its budget: a count, or a density."""
    if size is None or not _takes_size(method):
        return method
    if hasattr(method, "sized"):
        return method.sized(size)
    if isinstance(size, int):
        return replace(method, edges=size)
    return replace(method, edges=None, sparsity=1.0 - size)


def find(method: Any, selection: Selection, model: MaskedModel, task: Task) -> Found:
    """Runs the method and selects the edges."""
    if hasattr(method, "fit"):
        fit = method.fit(model, task)
        ablation = getattr(fit, "ablation", None)  # a greedy descent learns no constants
        learned = ablation if ablation is not None and ablation.parameters else None
        scores = getattr(fit, "scores", None)
        return Found(fit.mask, scores, fit.mask.num_kept, learned, fit.stopped, fit.notes)
    if hasattr(method, "prune"):
        mask = method.prune(model, task)
        return Found(mask, None, mask.num_kept)
    from graphprune.methods.base import ablation_of
    from graphprune.selection_circuit import cut_off_nodes_differ, without_dead_ends

    by: By = selection.by or "abs"
    size = 0.01 if selection.size is None else selection.size
    under = ablation_of(method)
    from_inputs = not cut_off_nodes_differ(under, task)
    if selection.way == "nodes":
        from graphprune.scores import EdgeScores

        nodes = method.score_nodes(model, task)
        scores = EdgeScores.computed(model.graph, nodes.edge_values(), method=nodes.method)
        mask = nodes.top(size, by=by)
    else:
        scores = method.score(model, task)
        if selection.way == "threshold" and selection.threshold is not None:
            mask = scores.threshold(selection.threshold, by=by)
        else:
            way = selection.way or "top"
            choice = Choice(method, model, task, scores, size, by, from_inputs)
            mask = WAYS[way](choice, **way_settings(way, selection.settings))
    chosen = mask.num_kept
    if selection.prune_dead_ends:
        mask = without_dead_ends(mask, ablation=under, task=task)
    if mask.num_kept == 0:
        raise InputError(
            f"no edge is left: of the {chosen} selected none lies on a path from the input to the "
            "output; a larger --size, --select greedy or --keep-dead-ends keeps more"
        )
    return Found(mask, scores, chosen)
