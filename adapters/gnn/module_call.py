"""The user's module on their data: how it is called, and what the rows of its outputs are.

A user calls a module by its parameters' names (``module(data.x, data.edge_index, data.u)``), by the
data itself (``module(data)``), or in a way of their own, which ``forward=`` says. A row of its
outputs is a node (of one type, or of several), or a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.errors import InputError, UnsupportedModelError, unknown_name
from graphprune.util.modes import on_device, quiet

from .copies import GraphCopies
from .graph_data import GraphData, NodeFeatures
from .hooks import MessageHooks
from .norms import one_by_one
from .propagation import EdgeRows, Propagation

__all__ = ["GraphModule", "ModuleCall", "OutputRows"]


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """A way to call a module on its data.

    Args:
        module: the user's own.
        data: what it is called on.
        forward: the user's own way, ``(module, data) -> outputs``, if it was said.
        takes_data: whether the module takes the data itself.
        arguments: parameters that are filled by the data's attributes of those names.
        batch_arguments: parameters that are filled once several copies stand side by side.
        positional: how many of ``arguments`` must be given by position.
        bare_norms: paths of norms over whole graphs that the user's call gives no batch vector.
    """

    module: nn.Module
    data: GraphData
    forward: Callable[[Any, Any], Any] | None = None
    takes_data: bool = False
    arguments: tuple[str, ...] = ()
    batch_arguments: tuple[str, ...] = ()
    positional: int = 0
    bare_norms: tuple[str, ...] = ()

    def __call__(self, copies: GraphCopies, hooks: MessageHooks | None = None) -> Any:
        """The module's own outputs for copies of the data, while ``hooks`` watch."""
        if hooks is not None:
            with hooks.watch(self.module):
                return self(copies)
        if self.bare_norms and copies.count > 1:
            with one_by_one(self.module, self.bare_norms):
                return self._outputs(copies)
        return self._outputs(copies)

    def _outputs(self, copies: GraphCopies) -> Any:
        if self.forward is not None or self.takes_data:
            return self.on_data(self.data.copied_data(copies))
        more = self.batch_arguments if copies.count > 1 and self.data.layout.batch else ()
        return self._named(
            {name: self.data.copied_value(copies, name) for name in (*self.arguments, *more)}
        )

    def on_data(self, data: Any) -> Any:
        """The outputs of the user's own call on ``data``, which nothing of ours has touched."""
        if self.forward is not None:
            return self.forward(self.module, data)
        if self.takes_data:
            return self.module(data)
        return self._named({name: self.data.user_value(name, data) for name in self.arguments})

    def _named(self, values: dict[str, Any]) -> Any:
        by_place = [values.pop(name) for name in self.arguments[: self.positional]]
        return self.module(*by_place, **values)

    def __str__(self) -> str:
        if self.forward is not None:
            return "forward(module, data)"
        return "module(data)" if self.takes_data else f"module({', '.join(self.arguments)})"


@dataclass(frozen=True, eq=False)
class OutputRows:
    """How outputs are read.

    Args:
        level: ``"node"``, ``"graph"`` or ``"pair"``.
        types: the answered node types with their numbers of rows; of others
            ``{"": count}``.
        row: ``[N]`` the row of each of the graph's nodes; -1: it has none.
    """

    level: str
    types: Mapping[str, int]
    row: Tensor

    @classmethod
    def of(cls, raw: Any, data: GraphData, level: str | None, node_type: str | None) -> OutputRows:
        """From the outputs ``raw`` for one copy; raises where they have no such rows."""
        if node_type is not None and node_type not in data.types:
            raise unknown_name("node_type", node_type, data.types)
        if isinstance(raw, Mapping):
            return cls._by_type(raw, data, level, node_type)
        if not isinstance(raw, Tensor) or raw.ndim not in (1, 2):
            raise _no_rows(raw)
        fit = [t for t, count in data.types.items() if count == len(raw)]
        pairs = data.num_pairs
        if level is None and not fit:
            level = "pair" if len(raw) == pairs != data.num_graphs else "graph"
        if level in ("graph", "pair"):
            count = data.num_graphs if level == "graph" else pairs
            if len(raw) != count:
                raise _wrong_rows(f"{count} {level}s", raw, data)
            return cls(level, {"": count}, torch.full((data.num_nodes,), -1))
        if node_type is not None:
            fit = [t for t in fit if t == node_type]
        if not fit:
            counts = ", ".join(
                f"{count} {name}s" if name == "node" else f"{count} of {name}"
                for name, count in data.types.items()
                if node_type in (None, name)
            )
            raise _wrong_rows(counts, raw, data)
        if len(fit) > 1:
            raise InputError(
                f"the outputs' {len(raw)} rows may be nodes of {' or '.join(fit)}; say which, "
                f"gp.wrap(module, data=data, node_type={fit[0]!r})"
            )
        return cls._of_nodes(data, fit)

    @classmethod
    def _by_type(
        cls, raw: Mapping[str, Any], data: GraphData, level: str | None, node_type: str | None
    ) -> OutputRows:
        if level == "graph":
            raise UnsupportedModelError(
                "level='graph' expects a tensor with a row for each graph, got outputs by type"
            )
        there = {
            name: value
            for name, value in raw.items()
            if isinstance(value, Tensor) and value.ndim in (1, 2) and node_type in (None, name)
        }
        for name, value in there.items():
            if data.types.get(name) != len(value):
                raise _wrong_rows(f"{data.types.get(name, 0)} of {name}", value, data)
        widths = {value.shape[1:] for value in there.values()}
        if not there or len(widths) > 1:
            named = ", ".join(f"{k} {list(v.shape)}" for k, v in there.items()) or "nothing"
            raise InputError(
                f"outputs by type must be read at one of them, got {named}; say which, "
                "gp.wrap(module, data=data, node_type=...)"
            )
        return cls._of_nodes(data, list(there))

    @classmethod
    def _of_nodes(cls, data: GraphData, types: list[str]) -> OutputRows:
        row, starts, first = torch.full((data.num_nodes,), -1), data.first_nodes, 0
        for name in types:
            count = data.types[name]
            row[starts[name] : starts[name] + count] = torch.arange(first, first + count)
            first += count
        return cls("node", {name: data.types[name] for name in types}, row)

    def split(self, raw: Any, copies: int) -> Tensor:
        """``[copies, rows, V]``: outputs of copies side by side."""
        if isinstance(raw, Mapping):
            parts = [raw[name].unflatten(0, (copies, n)) for name, n in self.types.items()]
            return _with_columns(torch.cat(parts, 1))
        rows = sum(self.types.values())
        if raw.shape[0] != copies * rows:
            raise UnsupportedModelError(
                f"{copies} graphs side by side gave outputs of the shape {list(raw.shape)}; "
                f"expected {copies * rows} rows"
            )
        return _with_columns(raw.unflatten(0, (copies, rows)))

    def asked(self, batch: Batch) -> Tensor:
        """``[B]`` or ``[B, P]``: the rows in which a batch's examples are answered."""
        clean, corrupt = (
            on_device(side.get("graphs"), "cpu") if isinstance(side, Mapping) else None
            for side in (batch.clean, batch.corrupt)
        )
        if self.level == "graph":
            if corrupt is not None and (clean is None or not torch.equal(clean, corrupt)):
                raise InputError(
                    "the corrupted inputs name other 'graphs' than the clean ones; an example is "
                    "one graph of the data, corrupted by other features"
                )
            return torch.zeros(batch.size, dtype=torch.int64) if clean is None else clean
        if clean is not None or corrupt is not None:
            raise InputError(
                f"the inputs hold 'graphs', which a model that answers at {self.level}s does not "
                f"read: leave it out, positions say which {self.level}s are asked about"
            )
        if batch.positions is None:
            raise InputError("a task on nodes needs positions: the node each example is about")
        positions = batch.positions.cpu()
        if self.level == "pair":
            if int(positions.max()) >= self.types[""]:
                raise InputError(
                    f"positions name the pair {int(positions.max())}; data.edge_label_index has "
                    f"{self.types['']}"
                )
            return positions.clamp(min=0)
        if int(positions.max()) >= len(self.row):
            raise InputError(
                f"positions name the node {int(positions.max())}; the graph has {len(self.row)}"
            )
        rows = self.row[positions.clamp(min=0)]
        wrong = positions[(rows < 0) & (positions >= 0)]
        if len(wrong):
            raise InputError(
                f"positions name the node {int(wrong[0])}, and outputs are of "
                f"{', '.join(self.types)} alone: nodes are numbered type after type "
                "(gp.tasks.nodes(data, node_type=...))"
            )
        return rows.clamp(min=0)


def _with_columns(rows: Tensor) -> Tensor:
    """``[copies, rows, V]``; one number a row is a column."""
    return rows[..., None] if rows.ndim == 2 else rows


def _no_rows(raw: Any) -> UnsupportedModelError:
    got = list(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
    said = f"expected outputs of one row for each node or graph, got {got}"
    if isinstance(raw, list | tuple):
        said += (
            f" of {len(raw)}; say which of them is asked about, or put those with the same rows "
            "side by side: gp.wrap(module, data=data, forward=lambda module, d: "
            "module(d.x, d.edge_index)[0])"
        )
    return UnsupportedModelError(said)


def _wrong_rows(what: str, raw: Tensor, data: GraphData) -> UnsupportedModelError:
    said = f"expected outputs of one row for each of the {what}, got the shape {list(raw.shape)}"
    if len(raw) == data.num_edges:
        said += (
            ". Rows of edges would go with the edges that are cut: ask about pairs of nodes, "
            "data.edge_label_index = data.edge_index.clone(), which the module's forward reads to "
            "pick its rows"
        )
    return UnsupportedModelError(said)


@dataclass(frozen=True, eq=False)
class GraphModule:
    """A module whose call, copies and outputs have been checked (``self_check.py``).

    Args:
        call: how it is called.
        rows: how its outputs are read.
        why_unseen: why no messages by relation can be seen in it; ``""``: they can.
    """

    call: ModuleCall
    rows: OutputRows
    why_unseen: str = ""

    def require_messages(self, what: str) -> None:
        """Raises :class:`UnsupportedModelError` where the module shows no messages."""
        if self.why_unseen:
            raise UnsupportedModelError(
                f"no {what} here: {self.why_unseen}. Masks of zeros and ones under "
                "ablation='delete' are run on the smaller graph; nothing else is right for such a "
                "layer"
            )

    def outputs(self, copies: GraphCopies, hooks: MessageHooks | None = None) -> Tensor:
        """``[k, rows, V]`` for copies of the data, while ``hooks`` watch."""
        return self.rows.split(self.call(copies, hooks), copies.count)

    @torch.no_grad()
    def watched(self, features: NodeFeatures) -> tuple[list[Propagation], Tensor]:
        """Messages of the module itself and its outputs, all patterns side by side."""
        data, every = self.call.data, torch.arange(features.num_patterns)
        passes, outputs = [], []
        for patterns in every.split(1) if data.layout.alone else (every,):
            copies = data.make_copies(features.of(patterns), len(patterns))
            hooks = None if self.why_unseen else MessageHooks(copies.edges)
            with quiet(self.call.module):
                outputs.append(self.outputs(copies, hooks))
            passes.append([] if hooks is None else hooks.seen)
        seen = passes[0] if len(passes) == 1 else self._side_by_side(passes)
        for propagation in seen:
            propagation.messages = propagation.messages.detach()
        return seen, outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _side_by_side(self, passes: list[list[Propagation]]) -> list[Propagation]:
        """Propagations of copies that ran by themselves, as those of copies side by side."""
        data, joined = self.call.data, list[Propagation]()
        for each in zip(*passes, strict=True):
            one = each[0]
            nodes = data.types[data.end_types[one.relation][one.end]]
            edges, targets, numbers = (
                [torch.where(v < 0, v, v + copy * step) for copy, v in enumerate(values)]
                for values, step in (
                    ([p.edges for p in each], data.num_edges),
                    ([p.targets for p in each], nodes),
                    ([p.numbers for p in each], data.num_edges),
                )
            )
            messages = torch.cat([p.messages for p in each])
            places, reached = EdgeRows(torch.cat(edges), torch.cat(numbers)), torch.cat(targets)
            joined.append(Propagation(messages, places, lambda t=reached: t, one.relation, one.end))  # type: ignore[misc]
        return joined

    def read(self, out: Tensor, batch: Batch, copies: Tensor) -> Tensor:
        """``[n, V]`` or ``[n, P, V]``: outputs of examples, by copy ``[n]``; n is a multiple of B.

        ``out [C, rows, V]`` holds a row for each node or graph of each copy.
        """
        times = len(copies) // batch.size
        rows, copies = self.rows.asked(batch), copies.to(out.device)
        rows = rows.repeat(times, *[1] * (rows.ndim - 1)).to(out.device).clamp(min=0)
        answers: Tensor = out[copies if rows.ndim == 1 else copies[:, None], rows]
        return answers
