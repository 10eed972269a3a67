"""The part of a circuit that pictures read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.scores import EdgeScores


class CircuitLike(Protocol):
    """A graph, the edges kept of it, their scores if any, and where they came from."""

    @property
    def graph(self) -> ComputationalGraph:
        """The whole graph."""
        ...

    @property
    def mask(self) -> EdgeMask:
        """The kept edges."""
        ...

    @property
    def scores(self) -> EdgeScores | None:
        """The scores, where a method gave some."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Model, task, method and versions, as plain values."""
        ...

    @property
    def title(self) -> str:
        """The model and the task."""
        ...

    def report_dict(self) -> dict[str, Any]:
        """The circuit's report, as plain values."""
        ...
