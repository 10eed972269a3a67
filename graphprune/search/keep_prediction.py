"""A guess at which edges stay, from those decided before. A wrong one costs time, nothing else.

An edge is expected to do as its sender's last edges of its kind did, and as far as there are few
of these as the last edges of its kind did. Where an edge was measured in a row that stood on a
wrong guess, the rise seen there is nearly always on the right side of the threshold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

from graphprune.core.graph import ComputationalGraph

__all__ = ["KeepPredictor"]

_FIRST = 0.1  # the share that stays, before anything is known
_SEEN = 0.98  # how often a rise seen beside a wrong guess tells the decision
_LEAST = 0.001  # no chance is nearer to 0 or 1


@dataclass
class _Share:
    """The share of edges that stayed; each new one fades those before it by ``fade``."""

    fade: float
    stayed: float = 0.0
    count: float = 0.0

    def learn(self, stayed: bool) -> None:
        self.stayed += stayed - self.fade * self.stayed
        self.count += 1.0 - self.fade * self.count

    def beside(self, wider: float, weight: float) -> float:
        """The share when ``weight`` edges that stay as often as ``wider`` are added."""
        return (self.stayed + weight * wider) / (self.count + weight)


class KeepPredictor:
    """Chances that edges stay, learnt as they are decided.

    Example: two edges of ``a`` stayed, one of ``b`` did not.

        >>> pairs = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
        >>> forecast = KeepPredictor(ComputationalGraph.from_edges(pairs))
        >>> for edge, stayed in ((2, True), (1, True), (4, False)):
        ...     forecast.learn(edge, stayed)
        >>> [round(forecast.stays(edge), 2) for edge in (0, 3, 5)]  # of a, b and c
        [0.92, 0.1, 0.42]
    """

    def __init__(self, graph: ComputationalGraph) -> None:
        self._kind = graph.edge_kind.tolist()
        self._sender = list(zip(graph.edge_index[0].tolist(), self._kind, strict=True))
        self._of_senders: dict[Hashable, _Share] = defaultdict(lambda: _Share(0.2))
        self._of_kinds: dict[Hashable, _Share] = defaultdict(lambda: _Share(0.05))
        self._seen: dict[int, bool] = {}

    def stays(self, edge: int) -> float:
        """The chance that the edge stays."""
        if edge in self._seen:
            return _SEEN if self._seen[edge] else 1.0 - _SEEN
        wider = self._of_kinds[self._kind[edge]].beside(_FIRST, 2.0)
        chance = self._of_senders[self._sender[edge]].beside(wider, 0.3)
        return min(max(chance, _LEAST), 1.0 - _LEAST)

    def learn(self, edge: int, stayed: bool) -> None:
        """Takes note of a decision."""
        self._seen.pop(edge, None)
        self._of_senders[self._sender[edge]].learn(stayed)
        self._of_kinds[self._kind[edge]].learn(stayed)

    def hint(self, edge: int, stayed: bool) -> None:
        """Takes note of what an edge would have done in a circuit beside the one pruned."""
        self._seen[edge] = stayed
