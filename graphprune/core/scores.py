"""Scores: how useful each edge is, and how scores become masks.

Sign: positive means that ablating the edge makes the metric worse. Scores are means over examples,
in float32 whatever the model's dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from graphprune.core.edge_table import edge_table
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, budget, found_under
from graphprune.errors import InputError, NumericalError
from graphprune.util.checks import require_one_of, share_checked
from graphprune.util.modes import ordinary
from graphprune.util.notebook import notebook_card
from graphprune.util.numbers import NOISE, VANISHING, ranking

if TYPE_CHECKING:
    import pandas as pd

Ranking = Literal["abs", "signed"]


def ranked_values(values: Tensor, by: Ranking) -> Tensor:
    """The values that a ranking goes by: the magnitudes, or the values with their sign."""
    require_one_of(by, ("abs", "signed"), "by")
    return values.abs() if by == "abs" else values


def _checked(values: Tensor, shape: tuple[int | None, ...], what: str) -> Tensor:
    out = ordinary(torch.as_tensor(values).detach().to("cpu", torch.float32).clone())
    if out.ndim != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, out.shape, strict=True)
    ):
        raise InputError(f"{what} need the shape {list(shape)}, got {list(out.shape)}")
    bad = int((~torch.isfinite(out)).sum())
    if bad:
        first = int(torch.nonzero(~torch.isfinite(out))[0, 0])
        raise NumericalError(f"{bad} of {out.numel()} {what} are NaN or infinite, first at {first}")
    return out


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """One float32 score for each edge of ``graph``; positive = useful.

    ``method`` says how they came about. ``noise`` is how far apart scores have to be before more
    than rounding tells them apart: 0 for scores given as they are, a share of the largest for those
    that a method computed (:meth:`computed`). Scores within it are ties wherever ranks count.
    ``ablation`` is what a method found them under (``None``: not known); their masks carry it, and
    are judged under it where no other is said.

    Raises :class:`NumericalError` for NaN or infinite scores.

    Example:
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
        >>> scores = EdgeScores(graph, torch.tensor([0.5, -2.0, 1.0]))
        >>> scores.top(2).edges(), scores.top(2, by="signed").edges(), scores.threshold(0.7).edges()
        (['b->c', 'a->c'], ['a->b', 'a->c'], ['b->c', 'a->c'])
    """

    graph: ComputationalGraph
    values: Float32[Tensor, " edge"]
    method: str = field(default="", kw_only=True)
    noise: float = field(default=0.0, kw_only=True)
    ablation: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        checked = _checked(self.values, (self.graph.num_edges,), "edge scores")
        object.__setattr__(self, "values", checked)
        if not 0.0 <= self.noise < math.inf:
            raise InputError(f"noise must be a number from 0 on, got {self.noise!r}")

    @classmethod
    def computed(cls, graph: ComputationalGraph, values: Tensor, *, method: str) -> EdgeScores:
        """Scores that a model's passes gave, with the noise of a float32 computation."""
        largest = float(values.detach().abs().max()) if values.numel() else 0.0
        noise = NOISE * largest if math.isfinite(largest) else 0.0
        values = values.masked_fill(values.detach().abs() < VANISHING * largest, 0.0)
        return cls(graph, values, method=method, noise=noise)

    def top(self, size: float, by: Ranking = "abs") -> EdgeMask:
        """Keeps the ``size`` highest edges: an int counts edges, a float is a fraction of them.

        Exactly that many are kept; equal scores are taken in graph order. Of exact effects of
        deletion (``ablation="delete"``) take ``by="signed"``: those below 0 are edges that harm.
        """
        count = budget(size, self.graph.num_edges)
        return self._mask_of(ranking(ranked_values(self.values, by))[:count])

    def _mask_of(self, edges: Tensor) -> EdgeMask:
        values = torch.zeros(self.graph.num_edges)
        values[edges] = 1.0
        return EdgeMask(self.graph, values, ablation=self.ablation)

    def threshold(self, t: float, by: Ranking = "abs") -> EdgeMask:
        """Keeps every edge whose score is at least ``t``; raises :class:`InputError` for a NaN."""
        number = isinstance(t, int | float | np.integer | np.floating) and not isinstance(t, bool)
        if not number or np.isnan(t):
            raise InputError(f"a threshold must be a number, got {t!r}")
        kept = ranked_values(self.values, by) >= t
        return EdgeMask(self.graph, kept.float(), ablation=self.ablation)

    def greedy(self, size: float, by: Ranking = "abs") -> EdgeMask:
        """Grows a circuit from the output: always the best edge into a node already in it.

        The best-first construction of EAP-IG's ``apply_greedy``; every kept edge leads to the
        output. Fewer edges are kept only if no more can be reached.
        """
        from graphprune.selection.connected import grow_from_output

        count = budget(size, self.graph.num_edges)
        values = grow_from_output(self.graph, ranked_values(self.values, by), count)
        return EdgeMask(self.graph, values, ablation=self.ablation)

    def connected(self, size: float, by: Ranking = "abs", *, from_inputs: bool = True) -> EdgeMask:
        """Exactly ``size`` edges without dead ends, taken from the top of the ranking.

        ``from_inputs=False``: an edge need only lead to an output (see
        :meth:`EdgeMask.prune_dead_ends`).
        """
        from graphprune.selection.connected import exact_budget

        count = budget(size, self.graph.num_edges)
        values = ranked_values(self.values, by)
        mask = exact_budget(self.graph, values, count, from_inputs=from_inputs)
        return found_under(mask, self.ablation)

    def ilp(
        self,
        size: float,
        by: Ranking = "abs",
        *,
        positives: float = 0.0,
        from_inputs: bool = True,
        time_limit: float | None = None,
    ) -> EdgeMask:
        """The connected circuit of exactly ``size`` edges with the largest sum of scores.

        An integer programme, solved exactly (seconds for 30,000 edges); see
        :mod:`graphprune.selection.ilp`.

        Args:
            size: a count (int) or a share of all edges.
            by: sums magnitudes (``"abs"``) or the scores with their sign.
            positives: the share of the ``size`` edges that must score above 0.
            from_inputs: as for :meth:`connected`.
            time_limit: seconds, after which the best so far is taken, with a warning.

        Raises :class:`InputError` where no circuit has that size, or that many positive edges.

        Example:
            >>> graph = ComputationalGraph.from_edges(
            ...     [("a", "b"), ("b", "d"), ("a", "c"), ("c", "d"), ("a", "d")])
            >>> scores = EdgeScores(graph, torch.tensor([5.0, 1.0, 4.0, 3.0, 2.0]))
            >>> scores.ilp(2).edges(), scores.top(2).edges()
            (['a->c', 'c->d'], ['a->b', 'a->c'])
        """
        from graphprune.selection.ilp import best_circuit, least_positive

        count = budget(size, self.graph.num_edges)
        least = least_positive(self.values, count, positives) if positives else 0
        mask = best_circuit(
            self.graph,
            ranked_values(self.values, by),
            count,
            positive=self.values > 0,
            positives=least,
            from_inputs=from_inputs,
            time_limit=time_limit,
        )
        return found_under(mask, self.ablation)

    def pnr(
        self,
        size: float,
        positives: float = 0.7,
        *,
        connected: bool = True,
        from_inputs: bool = True,
    ) -> EdgeMask:
        """Positive-ratio selection: that share of ``size`` from the top positive, the rest by size.

        Exactly ``size`` edges (arXiv 2510.25786; published shares are .6 to .9).
        ``connected=False``, as published: dead ends may be among them. With ``connected`` the share
        may be missed where paths need other edges; :meth:`ilp` keeps it.

        Example:
            >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
            >>> scores = EdgeScores(graph, torch.tensor([-3.0, -2.0, 1.0]))
            >>> scores.pnr(2, 0.5, connected=False).edges(), scores.top(2).edges()
            (['a->b', 'a->c'], ['a->b', 'b->c'])
        """
        from graphprune.selection.rules import positives_first, take

        count = budget(size, self.graph.num_edges)
        order = positives_first(self.values, count, share_checked(positives, "positives"))
        mask = take(self.graph, order, count, connected=connected, from_inputs=from_inputs)
        return found_under(mask, self.ablation)

    def influence(self) -> EdgeScores:
        """Scores by how much of the output each edge makes up through all paths, signs kept.

        See :func:`graphprune.selection.rules.edge_influence`; shares of magnitudes, so scores of
        any scale give the same. Magnitudes are taken as amounts: attributions are, ranks are not.
        """
        from graphprune.selection.rules import edge_influence

        values = edge_influence(self.graph, self.values).float()
        values = torch.where(self.values < 0, -values, values)
        method = f"influence({self.method})"
        return EdgeScores(self.graph, values, method=method, ablation=self.ablation)

    def cumulative(self, share: float = 0.9) -> EdgeMask:
        """The fewest edges that make up at least ``share`` of all influence on the output.

        Edges by :meth:`influence`, the greatest first, as circuit tracing prunes; edges of none
        are never kept. Raises :class:`InputError` where no edge has any.
        """
        from graphprune.selection.rules import edge_influence

        wanted = share_checked(share, "share")
        influence = edge_influence(self.graph, self.values)
        order = ranking(influence)
        total = influence[order].cumsum(0)
        if not float(influence.sum()) > 0:
            raise InputError("no edge's score has any influence on the output")
        count = int((total < wanted * float(total[-1]) * (1 - 1e-12)).sum()) + 1
        return self._mask_of(order[:count])

    def to_frame(self) -> pd.DataFrame:
        """A row for each edge: columns edge, source, target, kind, score."""
        return edge_table(self.graph, {"score": self.values.numpy()})

    def _repr_html_(self) -> str:
        """The scores in a notebook: the ten strongest edges."""
        strongest = ranking(self.values.abs())[:10]
        names, values = self.graph.edge_names.at(strongest), self.values[strongest].tolist()
        return notebook_card(
            repr(self), columns=("strongest edges", "score"), rows=zip(names, values, strict=True)
        )

    def __repr__(self) -> str:
        edges = f"{self.graph.num_edges} {self.graph.counted}"
        return f"EdgeScores({edges}, method={self.method!r})"


@dataclass(frozen=True, eq=False)
class PositionalEdgeScores:
    """One score for each edge and position: ``values`` is ``[E, pos]``.

    ``positions`` names them where they are spans that a task aligns; empty for token positions.

    Example:
        >>> by_position = gp.EAP().score_positions(lm, prompts.take(1))
        >>> by_position.values.shape, by_position.total()
        (torch.Size([110, 19]), EdgeScores(110 edges, method='EAP'))
    """

    graph: ComputationalGraph
    values: Float32[Tensor, "edge pos"]
    positions: tuple[str, ...] = ()
    method: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        checked = _checked(self.values, (self.graph.num_edges, None), "positional edge scores")
        object.__setattr__(self, "values", checked)

    def total(self) -> EdgeScores:
        """The sum over positions: the ordinary edge scores."""
        return EdgeScores.computed(self.graph, self.values.sum(1), method=self.method)

    def to_frame(self) -> pd.DataFrame:
        """A row for each edge and position: edge, source, target, kind, pos, score."""
        frame = edge_table(self.graph)
        n_pos = self.values.shape[1]
        long = frame.loc[frame.index.repeat(n_pos)].reset_index(drop=True)
        names = np.array(self.positions or range(n_pos), dtype=object if self.positions else None)
        long["pos"] = np.tile(names, len(frame))
        long["score"] = self.values.reshape(-1).numpy()
        return long

    def _repr_html_(self) -> str:
        """The scores in a notebook: their sum over positions."""
        return notebook_card(repr(self), parts=[self.total()._repr_html_()])

    def __repr__(self) -> str:
        edges, positions = self.values.shape
        return f"PositionalEdgeScores({edges} edges, {positions} positions, method={self.method!r})"


@dataclass(frozen=True, eq=False)
class NodeScores:
    """One score for each node that sends messages (NaN-free; other nodes score 0).

    Args:
        values: ``[N]``, positive = useful.
        neurons: ``{node name: [d]}`` where single neurons of a node's output were scored.

    Raises :class:`InputError` for wrong shapes and unknown nodes, :class:`NumericalError` for NaN
    or infinite scores, of nodes and of neurons.

    Example:
        >>> nodes = gp.NAP().score_nodes(lm, prompts)
        >>> nodes.top(5)
        EdgeMask(26 of 110 edges, 23.6364%)
        >>> nodes.to_frame().columns.tolist()
        ['node', 'kind', 'layer', 'score']
    """

    graph: ComputationalGraph
    values: Float32[Tensor, " node"]
    neurons: dict[str, Tensor] = field(default_factory=dict)
    method: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        checked = _checked(self.values, (self.graph.num_nodes,), "node scores")
        object.__setattr__(self, "values", checked)
        unknown = [name for name in self.neurons if name not in self.graph.node_number]
        if unknown:
            raise InputError(f"neurons of {unknown[:5]} are scored: no nodes of the graph")
        neurons = {
            name: _checked(values, (None,), f"scores of neurons of {name}")
            for name, values in self.neurons.items()
        }
        object.__setattr__(self, "neurons", neurons)

    @property
    def senders(self) -> Tensor:
        """Numbers of the nodes that send messages, the ones a node circuit chooses among."""
        numbers: Tensor = torch.unique(self.graph.untied.edge_index[0])
        return numbers

    def top(self, size: float, by: Ranking = "abs") -> EdgeMask:
        """The node circuit of the ``size`` best senders: every edge between two of them.

        Outputs and the readers wired to a kept node belong to it too.
        """
        senders = self.senders
        count = budget(size, len(senders))
        magnitude = ranked_values(self.values, by)
        kept = torch.zeros(self.graph.num_nodes, dtype=torch.bool)
        kept[senders[ranking(magnitude[senders])[:count]]] = True
        kept[list(self.graph.output_nodes)] = True
        wires = self.graph.fixed_edge_index
        targets_kept = kept.clone()
        targets_kept[wires[0][kept[wires[1]]]] = True
        source, target = self.graph.edge_index
        return EdgeMask(self.graph, (kept[source] & targets_kept[target]).float())

    def edge_values(self) -> Tensor:
        """``[E]``: for each edge the score, sign included, of its end with the smaller size.

        Outputs are no senders and never the smaller end; a reader wired to several nodes (a
        key/value head) counts as the strongest of them.
        """
        value, graph = self.values.clone(), self.graph
        sends = torch.zeros(graph.num_nodes, dtype=torch.bool)
        sends[self.senders] = True
        for source, target in graph.fixed_edge_index.T.tolist():
            if not sends[source] and self.values[target].abs() > value[source].abs():
                value[source] = self.values[target]
        size = value.abs()
        wired = graph.fixed_edge_index[0]
        size[~sends & ~torch.isin(torch.arange(graph.num_nodes), wired)] = float("inf")
        source, target = graph.edge_index
        return torch.where(size[source] <= size[target], value[source], value[target])

    def to_frame(self) -> pd.DataFrame:
        """A row for each sending node: columns node, kind, layer, score."""
        import pandas as pd

        chosen = self.senders.tolist()
        nodes = [self.graph.nodes[i] for i in chosen]
        return pd.DataFrame(
            {
                "node": [n.name for n in nodes],
                "kind": [n.kind for n in nodes],
                "layer": [n.layer for n in nodes],
                "score": self.values[chosen].numpy(),
            }
        )

    def _repr_html_(self) -> str:
        """The scores in a notebook: the ten strongest nodes."""
        strongest = ranking(self.values.abs())[:10].tolist()
        rows = [(self.graph.nodes[i].name, float(self.values[i])) for i in strongest]
        return notebook_card(repr(self), columns=("strongest nodes", "score"), rows=rows)

    def __repr__(self) -> str:
        return f"NodeScores({self.graph.num_nodes} nodes, method={self.method!r})"
