"""From a method to a mask: scores and a selection, or a pruner's own choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from graphprune.errors import InputError

if TYPE_CHECKING:
    from graphprune.mask import EdgeMask
    from graphprune.model import MaskedModel
    from graphprune.scores import EdgeScores
    from graphprune.task import Task

__all__ = ["By", "Selection", "Ways", "find"]

Ways = Literal["top", "greedy", "threshold", "nodes"]
By = Literal["abs", "signed"]


@dataclass(frozen=True)
class Selection:
    """How scores become a mask; ``None``: not said on the command line."""

    way: Ways | None = None
    by: By | None = None
    size: int | float | None = None
    threshold: float | None = None
    prune_dead_ends: bool = True

    def check(self, method: Any, name: str) -> None:
        """Raises where the options do not fit each other or the method, before anything runs."""
        if not hasattr(method, "score"):
            given = (self.way, self.by, self.size, self.threshold)
            if any(option is not None for option in given):
                raise InputError(
                    f"method {name!r} chooses the edges itself; --select, --by, --size and "
                    "--threshold are for methods that give scores"
                )
            return
        if self.way == "threshold" and self.threshold is None:
            raise InputError("--select threshold needs --threshold")
        if self.way == "threshold" and self.size is not None:
            raise InputError("--select threshold keeps what --threshold says; leave --size out")
        if self.way != "threshold" and self.threshold is not None:
            raise InputError("--threshold is for --select threshold")
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
        return {**done, "prune_dead_ends": self.prune_dead_ends}


def find(
    method: Any, selection: Selection, model: MaskedModel, task: Task
) -> tuple[EdgeMask, EdgeScores | None, int]:
    """The mask, the scores if there are any, and how many edges dead ends did not yet cost."""
    if not hasattr(method, "score"):
        mask = method.prune(model, task)
        return mask, None, mask.num_kept
    from graphprune.methods.base import cut_off_nodes_differ

    by: By = selection.by or "abs"
    size = 0.01 if selection.size is None else selection.size
    if selection.way == "nodes":
        from graphprune.scores import EdgeScores

        nodes = method.score_nodes(model, task)
        scores = EdgeScores(model.graph, nodes.edge_values(), method=nodes.method)
        mask = nodes.top(size, by=by)
    else:
        scores = method.score(model, task)
        if selection.way == "threshold" and selection.threshold is not None:
            mask = scores.threshold(selection.threshold, by=by)
        elif selection.way == "greedy":
            mask = scores.greedy(size, by=by)
        else:
            mask = scores.top(size, by=by)
    chosen = mask.num_kept
    if selection.prune_dead_ends:
        mask = mask.prune_dead_ends(
            from_inputs=not cut_off_nodes_differ(
                getattr(method, "ablation", "counterfactual"), task
            )
        )
    if mask.num_kept == 0:
        raise InputError(
            f"no edge is left: of the {chosen} selected none lies on a path from the input to the "
            "output; a larger --size, --select greedy or --keep-dead-ends keeps more"
        )
    return mask, scores, chosen
