"""What a row of a module's outputs is: a node (of one type, or of several), or a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.errors import InputError, UnsupportedModelError, unknown_name

from .replicas import Source

__all__ = ["Answers"]


@dataclass(frozen=True, eq=False)
class Answers:
    """How outputs are read.

    Args:
        level: ``"node"`` or ``"graph"``.
        types: the answered node types with their numbers of rows; of graphs ``{"": graphs}``.
        row: ``[N]`` the row of each of the graph's nodes; -1: it has none.
    """

    level: str
    types: Mapping[str, int]
    row: Tensor

    @classmethod
    def of(cls, raw: Any, source: Source, level: str | None, node_type: str | None) -> Answers:
        """From the outputs ``raw`` for one copy; raises where they have no such rows."""
        if node_type is not None and node_type not in source.types:
            raise unknown_name("node_type", node_type, source.types)
        if isinstance(raw, Mapping):
            return cls._of_types(raw, source, level, node_type)
        rows = {"node": source.types, "graph": {"": source.num_graphs}}
        if not isinstance(raw, Tensor) or raw.ndim != 2:
            got = list(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
            raise UnsupportedModelError(
                f"expected outputs of one row for each node or graph, got {got}"
            )
        fit = [t for t, count in source.types.items() if count == len(raw)]
        if level is None:
            level = "node" if fit else "graph"
        if level == "graph":
            if len(raw) != source.num_graphs:
                raise _shape(f"{source.num_graphs} graphs", raw)
            return cls(level, rows[level], torch.full((source.num_nodes,), -1))
        if node_type is not None:
            fit = [t for t in fit if t == node_type]
        if not fit:
            counts = ", ".join(
                f"{count} {name}s" if name == "node" else f"{count} of {name}"
                for name, count in source.types.items()
                if node_type in (None, name)
            )
            raise _shape(counts, raw)
        if len(fit) > 1:
            raise InputError(
                f"the outputs' {len(raw)} rows may be nodes of {' or '.join(fit)}; say which, "
                f"gp.wrap(module, data=data, node_type={fit[0]!r})"
            )
        return cls(level, {fit[0]: len(raw)}, _places(source, fit))

    @classmethod
    def _of_types(
        cls, raw: Mapping[str, Any], source: Source, level: str | None, node_type: str | None
    ) -> Answers:
        if level == "graph":
            raise UnsupportedModelError(
                "level='graph' expects a tensor with a row for each graph, got outputs by type"
            )
        there = {
            name: value
            for name, value in raw.items()
            if isinstance(value, Tensor) and value.ndim == 2 and node_type in (None, name)
        }
        for name, value in there.items():
            if source.types.get(name) != len(value):
                raise _shape(f"{source.types.get(name, 0)} of {name}", value)
        widths = {value.shape[1] for value in there.values()}
        if not there or len(widths) > 1:
            named = ", ".join(f"{k} {list(v.shape)}" for k, v in there.items()) or "nothing"
            raise InputError(
                f"outputs by type must be read at one of them, got {named}; say which, "
                "gp.wrap(module, data=data, node_type=...)"
            )
        return cls("node", {k: len(v) for k, v in there.items()}, _places(source, list(there)))

    def split(self, raw: Any, copies: int) -> Tensor:
        """``[copies, rows, V]``: outputs of copies side by side."""
        if isinstance(raw, Mapping):
            parts = [raw[name].unflatten(0, (copies, n)) for name, n in self.types.items()]
            return torch.cat(parts, 1)
        rows = sum(self.types.values())
        if raw.shape[0] != copies * rows:
            raise UnsupportedModelError(
                f"{copies} graphs side by side gave outputs of the shape {list(raw.shape)}; "
                f"expected {copies * rows} rows"
            )
        found: Tensor = raw.unflatten(0, (copies, rows))
        return found

    def at(self, batch: Batch) -> Tensor:
        """``[B]`` or ``[B, P]``: the rows in which a batch's examples are answered."""
        own, other = (
            side.get("graphs") if isinstance(side, Mapping) else None
            for side in (batch.clean, batch.corrupt)
        )
        if self.level == "graph":
            if other is not None and (own is None or not torch.equal(own, other)):
                raise InputError(
                    "the corrupted inputs name other 'graphs' than the clean ones; an example is "
                    "one graph of the data, corrupted by other features"
                )
            return torch.zeros(batch.size, dtype=torch.int64) if own is None else own
        if own is not None or other is not None:
            raise InputError(
                "the inputs hold 'graphs', which a model that answers at nodes does not read: "
                "leave it out, positions say which nodes are asked about"
            )
        if batch.positions is None:
            raise InputError("a task on nodes needs positions: the node each example is about")
        positions = batch.positions.cpu()
        if int(positions.max()) >= len(self.row):
            raise InputError(
                f"positions name the node {int(positions.max())}; the graph has {len(self.row)}"
            )
        rows = self.row[positions.clamp(min=0)]
        if bool(((rows < 0) & (positions >= 0)).any()):
            wrong = int(positions[(rows < 0) & (positions >= 0)][0])
            raise InputError(
                f"positions name the node {wrong}, and outputs are of {', '.join(self.types)} "
                "alone: nodes are numbered type after type (gp.tasks.nodes(data, node_type=...))"
            )
        return rows.clamp(min=0)


def _places(source: Source, types: list[str]) -> Tensor:
    row, starts, first = torch.full((source.num_nodes,), -1), source.starts, 0
    for name in types:
        count = source.types[name]
        row[starts[name] : starts[name] + count] = torch.arange(first, first + count)
        first += count
    return row


def _shape(what: str, raw: Tensor) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"expected outputs of one row for each of the {what}, got the shape {list(raw.shape)}"
    )
