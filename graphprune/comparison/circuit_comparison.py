"""The result of comparing circuits: what each pair shares, as values, frames and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from graphprune.comparison.overlap_nulls import NullName, OverlapNull
from graphprune.comparison.p_values import rank_p
from graphprune.comparison.score_overlap import RankCorrelation
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError
from graphprune.util.checks import require_one_of

if TYPE_CHECKING:
    import pandas as pd


QUANTITIES = ("jaccard", "contained", "shared", "nodes", "weighted", "spearman", "spearman_abs")
"""The quantities that a matrix of circuits by circuits can hold."""


@dataclass(frozen=True, kw_only=True)
class SampledNull:
    """Random draws of a quantity: ``p_more`` is (1 + draws at least as large) / (1 + draws).

    ``p_least`` is the smallest that it could have been, of the largest value there is, 1.

    Example:
        >>> null = SampledNull.of([0.1, 0.3, 0.2], 0.9)
        >>> null.mean, null.p_more
        (0.200, 0.25)
    """

    mean: float
    sd: float
    low: float
    high: float
    p_more: float
    p_least: float
    samples: int

    @classmethod
    def of(cls, drawn: Sequence[float], value: float) -> SampledNull:
        """From the draws and the value itself; ``low`` to ``high`` holds 95 % of the draws.

        Example:
            >>> SampledNull.of([0.0, 1.0, 2.0], 2.0).p_more
            0.5
        """
        values = np.asarray(drawn, dtype=np.float64)
        low, high = np.quantile(values, [0.025, 0.975]).tolist()
        # Sums in another order differ in the last digits; a tie counts as at least as large.
        more, least = (rank_p(bar, values, tolerance=1e-12) for bar in (value, 1.0))
        return cls(
            mean=float(values.mean()), sd=float(values.std()), low=low, high=high,
            p_more=more, p_least=least, samples=len(values),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NodeOverlap:
    """The nodes that both circuits use, that is, touch with a kept edge.

    ``nulls``: by chance, of as many random nodes (``"uniform"``), and of as many of every kind at
    every level (``"composition"``); both exact. Inputs, outputs and other nodes without a like are
    left nothing by the second.

    Example:
        >>> two = {"EAP": scores.top(12), "random": gp.Random().score(model, task).top(12)}
        >>> nodes = gp.compare_circuits(two).pair("EAP", "random").nodes
        >>> nodes.nodes_first, nodes.nodes_second, nodes.shared
        (10, 8, 8)
    """

    nodes_first: int
    nodes_second: int
    shared: int
    jaccard: float
    nulls: Mapping[NullName, OverlapNull]


@dataclass(frozen=True, kw_only=True)
class ScoreOverlap:
    """The overlap of two sets of scores over all edges, kept or not.

    ``weighted_jaccard`` is Ruzicka's, signs apart, each set over its sum; ``sampled`` the same of
    scores permuted within strata. Rank correlations are ``None`` where scores are constant.

    Example:
        >>> two = {"EAP": scores, "magnitude": gp.spectral.Magnitude().score(model, task)}
        >>> both = {name: gp.Circuit.from_mask(s.top(12), scores=s) for name, s in two.items()}
        >>> overlap = gp.compare_circuits(both).pair("EAP", "magnitude").scores
        >>> overlap.weighted_jaccard, overlap.spearman_abs.value
        (0.314, 0.333)
    """

    weighted_jaccard: float
    weighted_jaccard_ignoring_signs: float
    sampled: SampledNull | None
    spearman: RankCorrelation | None
    spearman_abs: RankCorrelation | None


@dataclass(frozen=True, kw_only=True)
class PairOverlap:
    """Two circuits: what they share, and what chance would give.

    ``contained_first`` is the share of the first circuit's edges that the second has too (``None``
    for an empty circuit). ``nulls`` are the kinds of chance by name.

    Example:
        >>> two = {"EAP": scores.top(12), "random": gp.Random().score(model, task).top(12)}
        >>> pair = gp.compare_circuits(two).pair("EAP", "random")
        >>> pair.edges_first, pair.shared, round(pair.jaccard, 2)
        (12, 5, 0.26)
    """

    first: str
    second: str
    edges_first: int
    edges_second: int
    shared: int
    jaccard: float
    contained_first: float | None
    contained_second: float | None
    nulls: Mapping[NullName, OverlapNull]
    nodes: NodeOverlap
    scores: ScoreOverlap | None

    def beyond_chance(self, null: NullName = "uniform") -> float | None:
        """(shared - mean) / (largest possible - mean): 0 at chance, 1 where one holds the other.

        ``None`` where chance already gives the largest possible number.
        """
        if null not in self.nulls:
            raise InputError(f"chance {null!r} was not asked for; there is {list(self.nulls)}")
        mean, most = self.nulls[null].mean, min(self.edges_first, self.edges_second)
        return (self.shared - mean) / (most - mean) if most - mean > 1e-9 else None

    def to_row(self) -> dict[str, Any]:
        """One flat row: ``uniform_p_more``, ``nodes_shared``, ``spearman_value`` and so on."""
        nested = {"nulls", "nodes", "scores"}
        row = {name: value for name, value in vars(self).items() if name not in nested}
        for chance, null in self.nulls.items():
            row |= {f"{chance}_{key}": value for key, value in null.to_dict().items()}
            row[f"{chance}_beyond"] = self.beyond_chance(chance)
        for name in ("nodes_first", "nodes_second"):
            row[name] = getattr(self.nodes, name)
        row |= {"nodes_shared": self.nodes.shared, "nodes_jaccard": self.nodes.jaccard}
        for chance, null in self.nodes.nulls.items():
            row |= {f"nodes_{chance}_{key}": getattr(null, key) for key in ("mean", "z", "p_more")}
        for name, value in vars(self.scores).items() if self.scores is not None else ():
            if isinstance(value, float):
                row[name] = value
            elif value is not None:
                prefix = "weighted_sampled" if name == "sampled" else name
                flat = {f"{prefix}_{key}": item for key, item in vars(value).items()}
                row |= {key: item for key, item in flat.items() if item is not None}
        return row


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitComparison:
    """Circuits on one graph and what each pair of them shares.

    Attributes:
        masks: the circuits by name, all on the first one's graph.
        pairs: every pair, in order.
        in_exactly: ``in_exactly[k]`` edges are in exactly k of the circuits.
        strata: what random circuits keep under the chance ``"composition"``; ``num_strata`` classes
            of edges come of it, and ``left_out`` says which axes the graph does not have, and why.
        samples, seed: of the random draws.
        remarks: what to keep in mind when reading the figures.

    Example:
        >>> two = {"EAP": scores.top(12), "random": gp.Random().score(model, task).top(12)}
        >>> comparison = gp.compare_circuits(two)
        >>> comparison.pair("EAP", "random").shared, comparison.common(2)
        (5, EdgeMask(5 of 24 edges, 20.8333%))
    """

    masks: Mapping[str, EdgeMask]
    pairs: tuple[PairOverlap, ...]
    in_exactly: tuple[int, ...]
    strata: tuple[str, ...]
    num_strata: int
    left_out: Mapping[str, str]
    samples: int
    seed: int
    remarks: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The circuits' names."""
        return tuple(self.masks)

    @property
    def graph(self) -> ComputationalGraph:
        """The graph of all masks."""
        return next(iter(self.masks.values())).graph

    def pair(self, first: str, second: str) -> PairOverlap:
        """The pair of two names, in the order they were compared in."""
        for pair in self.pairs:
            if {pair.first, pair.second} == {first, second} and first != second:
                return pair
        raise InputError(f"there is no pair of {first!r} and {second!r}; circuits: {self.names}")

    def common(self, at_least: int | None = None) -> EdgeMask:
        """The edges that at least so many of the circuits keep; ``None`` means all of them."""
        least = len(self.masks) if at_least is None else at_least
        if not 1 <= least <= len(self.masks):
            raise InputError(f"at_least must be from 1 to {len(self.masks)}, got {at_least}")
        kept = torch.stack([mask.kept for mask in self.masks.values()]).sum(0)
        return EdgeMask(self.graph, (kept >= least).float())

    def matrix(self, quantity: str = "jaccard") -> pd.DataFrame:
        """Circuits by circuits: one of :data:`QUANTITIES`.

        ``"contained"`` is not symmetric: the share of the row's edges that the column's circuit
        has. NaN where a quantity is not defined.
        """
        import pandas as pd

        require_one_of(quantity, QUANTITIES, "quantity")
        names = list(self.names)
        table = np.full((len(names), len(names)), np.nan)
        for place, name in enumerate(names):
            mask = self.masks[name]
            own = {"shared": mask.num_kept, "contained": 1.0 if mask.num_kept else np.nan}
            table[place, place] = own.get(quantity, 1.0)
        for pair in self.pairs:
            i, j = names.index(pair.first), names.index(pair.second)
            table[i, j], table[j, i] = _both(pair, quantity)
        return pd.DataFrame(table, index=names, columns=names)

    def to_frame(self) -> pd.DataFrame:
        """A row for each pair."""
        import pandas as pd

        return pd.DataFrame([pair.to_row() for pair in self.pairs])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the masks as plain values."""
        from graphprune.util.plain import plain

        return {
            "circuits": {name: mask.num_kept for name, mask in self.masks.items()},
            "edges": self.graph.num_edges,
            "in_exactly": list(self.in_exactly),
            "pairs": [plain(pair.to_row()) for pair in self.pairs],
            "strata": list(self.strata),
            "num_strata": self.num_strata,
            "left_out": dict(self.left_out),
            "samples": self.samples,
            "seed": self.seed,
            "remarks": list(self.remarks),
        }

    def plot(self, path: Any = None, *, quantity: str = "jaccard", ax: Any = None) -> Any:
        """A heat map of :meth:`matrix`; writes ``path`` if given; gives the axes."""
        from graphprune.drawing.comparisons import plot_matrix

        return plot_matrix(self, quantity, path=path, ax=ax)

    def __repr__(self) -> str:
        return f"CircuitComparison({', '.join(self.names)}; {self.graph.num_edges} edges)"


def _both(pair: PairOverlap, quantity: str) -> list[float]:
    """The quantity seen from either circuit."""
    scores = pair.scores
    sides: list[float | None] = [pair.contained_first, pair.contained_second]
    if quantity in ("jaccard", "shared"):
        sides = [getattr(pair, quantity)] * 2
    elif quantity == "nodes":
        sides = [pair.nodes.jaccard] * 2
    elif quantity == "weighted":
        sides = [None if scores is None else scores.weighted_jaccard] * 2
    elif quantity != "contained":
        correlation: RankCorrelation | None = getattr(scores, quantity, None)
        sides = [None if correlation is None else correlation.value] * 2
    return [np.nan if side is None else float(side) for side in sides]
