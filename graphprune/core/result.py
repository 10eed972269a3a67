"""The result of every method: one type, whoever found the circuit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from graphprune.core.edge_table import edge_table, require_other_names
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, found_under
from graphprune.core.model import Ablation, ablation_kind
from graphprune.core.scores import EdgeScores
from graphprune.errors import InputError
from graphprune.util.notebook import notebook_card

if TYPE_CHECKING:
    import pandas as pd

    from graphprune.core.overlap import ExampleFingerprint
    from graphprune.core.task import Task


@dataclass(frozen=True, eq=False)
class Result:
    """A circuit, a ranking of the edges, or both, with what is known of how they were found.

    Args:
        mask: the circuit; ``None`` where a ranking was asked for without a size.
        scores: the ranking, positive = useful; ``None`` where the method ranks no edges.
        ablation: what stood in for ablated messages, learned constants included; a name where the
            method made the ablation itself.
        history: a row of numbers for each step, the first step first.
        circuits: circuits of other sizes met on the way, by their number of edges.
        values: what else the method knows of each edge: tensors ``[E]`` by name, which become
            columns of :meth:`to_frame`. ``gates`` of a mask optimiser (log alphas, logits of keep
            chances or scores, without the senders'), ``effects`` of a greedy descent (the rise of
            the loss when an edge was decided, NaN where none was measured).
        notes: figures of the run as a whole, for programs: plain values by name, such as the
            circuit's ``loss``, ``steps``, ``evaluations``, ``seconds``.
        remarks: what a reader of the circuit should know, for people: whole sentences.
        stopped: why it ended before it was done, or ``""``.
        task: the examples that it was found on.

    Example:
        >>> import torch
        >>> graph = ComputationalGraph.from_edges([("input", "h"), ("h", "out"), ("input", "out")])
        >>> scores = EdgeScores(graph, torch.tensor([0.5, -2.0, 1.0]))
        >>> Result(scores.top(2), scores)
        Result(EdgeMask(2 of 3 edges, 66.6667%), EdgeScores(3 edges, method=''))
    """

    mask: EdgeMask | None = None
    scores: EdgeScores | None = None
    ablation: str | Ablation | None = None
    history: Sequence[Mapping[str, float]] = ()
    circuits: Mapping[int, EdgeMask] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    stopped: str = ""
    task: Task | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.mask is None and self.scores is None:
            raise InputError("a result holds a mask, scores or both; got neither")
        if self.ablation is None:
            return
        if self.mask is not None:
            object.__setattr__(self, "mask", found_under(self.mask, self.ablation))
        if self.scores is not None and self.scores.ablation is None:
            object.__setattr__(self, "scores", replace(self.scores, ablation=self.ablation))
        circuits = {size: found_under(mask, self.ablation) for size, mask in self.circuits.items()}
        object.__setattr__(self, "circuits", circuits)

    @cached_property
    def found_on(self) -> frozenset[ExampleFingerprint] | None:
        """Fingerprints of the examples that the method saw; ``None`` where that is not known."""
        return None if self.task is None else frozenset(self.task.example_fingerprints())

    @property
    def graph(self) -> ComputationalGraph:
        """The graph that mask and scores belong to."""
        part = self.scores if self.mask is None else self.mask
        assert part is not None
        return part.graph

    def to_frame(self) -> pd.DataFrame:
        """A row for each edge: edge, source, target, kind, and kept, score and values if any."""
        columns = {name: values.numpy() for name, values in self.values.items()}
        own = {"kept": self.mask, "score": self.scores}
        known = {name: part.values.numpy() for name, part in own.items() if part is not None}
        require_other_names(columns, own)
        return edge_table(self.graph, known | columns)

    def _repr_html_(self) -> str:
        """The result in a notebook: its ablation, mask, scores and remarks."""
        parts = [part._repr_html_() for part in (self.mask, self.scores) if part is not None]
        told: dict[str, Any] = {
            "ablation": ablation_kind(self.ablation),
            "stopped": self.stopped or None,
        }
        told |= {k: v for k, v in self.notes.items() if isinstance(v, int | float | str)}
        known = [fact for fact in told.items() if fact[1] is not None]
        return notebook_card("Result", known, remarks=self.remarks, parts=parts)

    def __repr__(self) -> str:
        parts = [repr(part) for part in (self.mask, self.scores) if part is not None]
        return f"Result({', '.join([*parts, *filter(None, [self.stopped])])})"


def scores_of(given: EdgeScores | Result) -> EdgeScores:
    """The scores of a result, or scores as they are; :class:`InputError` where it has none."""
    if not isinstance(given, Result):
        return given
    if given.scores is None:
        raise InputError("this result has a mask and ranks no edges; a curve needs scores")
    return given.scores
