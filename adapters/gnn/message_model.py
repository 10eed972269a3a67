"""Any module of PyG's message passing as a masked model.

The graph is the data's: its nodes, and its edges in the data's order. A mask value holds for an
edge at every layer and step. What an ablated message becomes (zero, its mean, the corrupted run's)
is put in the message's place, and whatever else the layer computes (degrees, attention) stays.
Under ``delete`` the edge is absent: masks of zeros and ones are run on the smaller graph, which is
right for every layer; between them the layer must be one whose normalisation a mask can follow
(:mod:`graphprune.adapters.gnn.deletion`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.batch import Batch
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.graph import ComputationalGraph, Node
from graphprune.model import Ablation, Messages, Objective, Reference

from ..modes import quiet
from .base import GraphModel, Sums, require_corrupt
from .passing import Call, Passing, arguments_of, convolutions, is_fused
from .replicas import Features, Source

__all__ = ["MessageModel", "MessageReference"]

_ROOM = 1 << 22  # edges side by side


class MessageReference(Reference):
    """Messages and outputs of the clean and the ablated run; made when first asked for."""

    def __init__(self, model: MessageModel, batch: Batch, ablation: Ablation) -> None:
        self.model, self.batch, self.ablation = model, batch, ablation
        self.given = model.source.features(batch.clean, batch.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the messages of one run, or of two."""
        runs = 2 if self.ablation.kind == "counterfactual" else 1
        calls, _ = self.clean
        return runs * sum(c.messages.numel() * c.messages.element_size() for c in calls)

    @cached_property
    def clean(self) -> tuple[list[Call], Tensor]:
        """Messages by call, and the outputs of every copy."""
        return self.model.seen(self.given)

    @cached_property
    def corrupt(self) -> list[Call]:
        """Messages of the corrupted run."""
        given = self.model.source.features(self.batch.corrupt, self.batch.size)
        if given.copies != self.given.copies:
            raise InputError(
                "clean and corrupted inputs must both be shared by all examples, or both be "
                "patterns"
            )
        return self.model.seen(given)[0]

    @property
    def full(self) -> Tensor:
        """Outputs of the module itself."""
        copies = torch.arange(self.batch.size) % self.given.copies
        return self.model.read(self.clean[1], self.batch, copies)

    @cached_property
    def ablated(self) -> Tensor:
        """Outputs with every edge's message replaced (or every edge absent)."""
        zeros = torch.zeros(1, self.model.graph.num_edges)
        return self.model.run(self.batch, zeros, self)[0]

    def replaced(self, copies: Tensor) -> list[Tensor] | None:
        """For each call ``[k * E, ...]``, what stands in for messages of ``copies [k]``."""
        kind, edges = self.ablation.kind, self.model.graph.num_edges
        if kind in ("zero", "delete"):
            return None
        if kind == "counterfactual":
            found = []
            for call in self.corrupt:
                mine = call.edges >= 0
                values = call.messages[mine].unflatten(0, (self.given.copies, edges))
                found.append(values[copies].flatten(0, 1))
            return found
        if kind == "mean":
            return [value.repeat(len(copies), *[1] * (value.ndim - 1)) for value in self._means()]
        raise UnsupportedModelError(
            f"message passing knows no ablation {self.ablation.name!r}; use counterfactual, zero, "
            "mean or delete"
        )

    def _means(self) -> list[Tensor]:
        calls, _ = self.clean
        values: list[Tensor] = list(self.ablation.values)
        if len(values) != len(calls):
            raise InputError("the mean messages were made by another model")
        return values


class MessageModel(GraphModel):
    """See the module's text.

    Args:
        module: the user's own; used as it is.
        data: a PyG ``Data`` or ``Batch``; what the module's ``forward`` names is taken from it.
        forward: ``(module, data) -> outputs`` where ``forward`` takes something else; ``data`` then
            is a fresh ``Data`` of the copies.
        level: ``"node"`` or ``"graph"``, what a row of the outputs is; ``None``: by its number.
        name: in provenance.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Any,
        *,
        forward: Callable[[Any, Any], Tensor] | None = None,
        level: str | None = None,
        name: str = "",
    ) -> None:
        why = is_fused(module)
        if why:
            raise UnsupportedModelError(why)
        if level not in (None, "node", "graph"):
            raise InputError(f"level must be 'node' or 'graph', got {level!r}")
        self._module, self._name, self._forward = module, name, forward
        self.source = Source.of(data)
        if not self.source.edge_index.shape[1]:
            raise InputError("the graph has no edges, so there is nothing to prune")
        every = tuple(range(self.source.num_nodes))
        self._graph = ComputationalGraph(
            nodes=tuple(Node(str(n), kind="node") for n in every),
            edge_index=self.source.edge_index.cpu().clone(),
            edge_kind=torch.zeros(self.source.edge_index.shape[1], dtype=torch.uint8),
            inputs=every,
            outputs=every,
        )
        plain = Features({k: v[None] for k, v in self.source.node.items()})
        calls, out = self.seen(plain)
        if not calls:
            raise UnsupportedModelError(
                f"{type(module).__name__} passed no message that could be seen"
            )
        rows = {"node": self.source.num_nodes, "graph": self.source.num_graphs}
        if level is None:
            level = "node" if out.shape[0] == rows["node"] else "graph"
        if out.ndim != 2 or out.shape[0] != rows[level]:
            raise UnsupportedModelError(
                f"expected outputs of one row for each of the {rows[level]} {level}s, got the "
                f"shape {list(out.shape)}"
            )
        self.level = level
        self._followed = False  # whether soft deletion was tried
        self._require_apart(plain, out)

    def _require_apart(self, given: Features, alone: Tensor) -> None:
        """Copies side by side must not feel each other: the second one's features are reversed."""
        two = Features({k: torch.cat([v, v.flip(1)]) for k, v in given.nodes.items()})
        _, both = self.seen(two)
        rows = len(alone)
        same = both.shape == (2 * rows, *alone.shape[1:])
        if not same or not _near(both[:rows], alone):
            raise UnsupportedModelError(
                f"{type(self._module).__name__} mixes graphs that stand side by side without an "
                "edge between them (a norm or a pooling over all nodes?); give such layers the "
                "batch vector, forward(x, edge_index, batch)"
            )

    def provenance(self) -> dict[str, Any]:
        """Sizes, a hash of the weights, and the convolutions."""
        kinds = [type(conv).__name__ for conv in convolutions(self._module).values()]
        return {**super().provenance(), "convolutions": kinds, "level": self.level}

    def reference(self, batch: Batch, ablation: Ablation | None = None) -> MessageReference:
        """See the base class; the default ablation is counterfactual."""
        ablation = ablation or Ablation()
        require_corrupt(batch, ablation)
        return MessageReference(self, batch, ablation)

    # ---------------------------------------------------------------- passes

    def _call(self, given: Features, numbers: Tensor, passing: Passing, index: Tensor) -> Tensor:
        """Raw outputs of copies ``numbers [k]`` while ``passing`` watches."""
        parts: dict[str, Any] = {**self.source.copies(len(numbers)), **given.of(numbers)}
        parts["edge_index"] = index
        if passing.kept is not None:
            for name in self.source.edge:
                parts[name] = parts[name][passing.kept]
        with passing.watch(self._module):
            if self._forward is not None:
                from torch_geometric.data import Data

                rows = len(numbers) * self.source.num_nodes
                made: Tensor = self._forward(self._module, Data(num_nodes=rows, **parts))
                return made
            wanted = arguments_of(self._module)
            if wanted == ["data"] or (len(wanted) == 1 and wanted[0] not in parts):
                from torch_geometric.data import Data

                rows = len(numbers) * self.source.num_nodes
                found: Tensor = self._module(Data(num_nodes=rows, **parts))
                return found
            chosen = {name: parts[name] for name in wanted if name in parts}
            out: Tensor = self._module(**chosen)
            return out

    @torch.no_grad()
    def seen(self, given: Features) -> tuple[list[Call], Tensor]:
        """Messages by call and raw outputs of the module itself, all patterns side by side."""
        numbers = torch.arange(given.copies)
        index = self.source.copies(given.copies)["edge_index"]
        passing = Passing(index)
        with quiet(self._module):
            out = self._call(given, numbers, passing, index)
        for call in passing.calls:
            call.messages = call.messages.detach()
        return passing.calls, out

    def read(self, out: Tensor, batch: Batch, copies: Tensor) -> Tensor:
        """``[n, V]`` or ``[n, P, V]``: outputs of examples, by copy ``[n]``; n is a multiple of B.

        Raw outputs ``[C * rows, V]`` hold a row for each node or graph of each copy.
        """
        rows = self.source.num_nodes if self.level == "node" else self.source.num_graphs
        split = out.reshape(-1, rows, out.shape[-1])
        times = len(copies) // batch.size
        copies = copies.to(out.device)
        at: Tensor | None
        if self.level == "graph":
            at = batch.clean.get("graphs") if isinstance(batch.clean, dict) else None
            at = torch.zeros(batch.size, dtype=torch.int64) if at is None else at
        else:
            at = batch.positions
            if at is None:
                raise InputError("a task on nodes needs positions: the node each example is about")
        at = at.repeat(times, *[1] * (at.ndim - 1)).to(out.device).clamp(min=0)
        found: Tensor = split[copies if at.ndim == 1 else copies[:, None], at]
        return found

    # ---------------------------------------------------------------- masked runs

    def _rows(self, reference: MessageReference, rows: Tensor) -> Tensor:
        batch, copies = reference.batch, reference.given.copies
        count = len(rows)
        own = rows.ndim == 3
        if own:
            masks, numbers = rows.flatten(0, 1), torch.arange(batch.size).repeat(count) % copies
            place = torch.arange(count * batch.size)
        else:
            masks = rows.repeat_interleave(copies, 0)
            numbers = torch.arange(copies).repeat(count)
            each = torch.arange(batch.size) % copies
            place = (torch.arange(count)[:, None] * copies + each).flatten()
        most = max(1, _ROOM // max(1, rows.shape[-1]))
        parts = [
            self._masked(reference, some, chosen)
            for some, chosen in zip(masks.split(most), numbers.split(most), strict=True)
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        found = self.read(out, batch, place)
        return found.reshape(count, batch.size, *found.shape[1:])

    def _masked(self, reference: MessageReference, masks: Tensor, numbers: Tensor) -> Tensor:
        """Raw outputs of copies ``numbers [k]``, each under its own mask ``[k, E]``."""
        index = self.source.copies(len(numbers))["edge_index"]
        delete = reference.ablation.kind == "delete"
        flat = masks.flatten()
        with quiet(self._module):
            if delete and not flat.requires_grad and bool(((flat == 0) | (flat == 1)).all()):
                kept = torch.nonzero(flat != 0)[:, 0]
                passing = Passing(index[:, kept], kept=kept)
                return self._call(reference.given, numbers, passing, index[:, kept])
            if delete and not self._followed:
                self._require_followed()
            replaced = reference.replaced(numbers)
            passing = Passing(index, flat, replaced, delete)
            return self._call(reference.given, numbers, passing, index)

    @torch.no_grad()
    def _require_followed(self) -> None:
        """A soft mask at zeros and ones must be the smaller graph; tried once, on drawn masks."""
        given = Features({k: v[None] for k, v in self.source.node.items()})
        index, one = self.source.edge_index, torch.zeros(1, dtype=torch.int64)
        generator = torch.Generator().manual_seed(0)
        for share in (0.3, 0.7):
            kept = torch.rand(index.shape[1], generator=generator) < share
            numbers = torch.nonzero(kept)[:, 0].to(index.device)
            passing = Passing(index[:, numbers], kept=numbers)
            small = self._call(given, one, passing, index[:, numbers])
            soft = self._call(given, one, Passing(index, kept.to(self._like), None, True), index)
            if not _near(soft, small):
                raise UnsupportedModelError(
                    f"a mask on {type(self._module).__name__} does not equal deleting edges: "
                    f"outputs differ by {float((soft - small).abs().max()):.3g}; masks of zeros "
                    "and ones are run on the smaller graph, others are refused"
                )
        self._followed = True

    # ---------------------------------------------------------------- gradients

    def _point(
        self,
        reference: MessageReference,
        objective: Objective,
        gate: Tensor | None,
        neurons: bool,
    ) -> Sums:
        edges, batch = self._graph.num_edges, reference.batch
        copies = torch.arange(reference.given.copies)
        row = torch.ones(edges).to(self._like) if gate is None else gate
        place = torch.arange(batch.size) % reference.given.copies
        if reference.ablation.kind == "delete":
            mask = row.clone().requires_grad_(True)
            with torch.enable_grad():
                out = self.read(
                    self._masked(reference, mask.expand(len(copies), -1), copies), batch, place
                )
                (found,) = torch.autograd.grad(objective(out).sum(), mask)
            return Sums(found[:, None].detach())
        index = self.source.copies(len(copies))["edge_index"]
        passing = Passing(index, row.repeat(len(copies)), reference.replaced(copies), felt=True)
        with quiet(self._module), torch.enable_grad():
            raw = self._call(reference.given, copies, passing, index)
            total = objective(self.read(raw, batch, place)).sum()
            gradients = torch.autograd.grad(
                total, [call.messages for call in passing.calls], allow_unused=True
            )
        instead = reference.replaced(copies)
        columns, fine = [], []
        for number, (call, gradient) in enumerate(zip(passing.calls, gradients, strict=True)):
            clean = reference.clean[0][number]
            mine = clean.edges >= 0
            values = clean.messages[mine]
            change = values if instead is None else values - instead[number].to(values)
            felt = torch.zeros_like(values) if gradient is None else gradient[call.edges >= 0]
            product = (change * felt).flatten(1).unflatten(0, (len(copies), edges)).sum(0)
            columns.append(product.sum(1))
            fine.append(product)
        widths = {part.shape[1] for part in fine}
        if neurons and len(widths) > 1:
            raise UnsupportedModelError(
                f"messages have different widths ({sorted(widths)}) in different layers, so there "
                "are no scores by neuron"
            )
        small = torch.stack(fine).sum(0).detach() if neurons else None
        return Sums(torch.stack(columns, 1).detach(), small)

    # ---------------------------------------------------------------- messages

    def messages(self, batch: Batch) -> Iterator[Messages]:
        """Messages by target node; a position is a propagation, narrow ones padded by zeros."""
        reference = self.reference(batch, Ablation("zero"))
        calls, _ = reference.clean
        copies, edges, n = reference.given.copies, self._graph.num_edges, self.source.num_nodes
        wide = max(call.messages[0].numel() for call in calls)
        each = torch.arange(batch.size) % copies
        sent, read = [], []
        for call in calls:
            flat = call.messages.flatten(1)
            flat = torch.nn.functional.pad(flat, (0, wide - flat.shape[1]))
            mine = flat[call.edges >= 0].unflatten(0, (copies, edges))
            sent.append(mine)
            total = flat.new_zeros(copies * n, wide).index_add(0, call.index, flat)
            read.append(total.unflatten(0, (copies, n)))
        values, totals = torch.stack(sent, 2)[each], torch.stack(read, 2)[each]
        target = self._graph.edge_index[1]
        weight = torch.ones(batch.size, len(calls)).to(values)
        for node in target.unique().tolist():
            at = torch.nonzero(target == node)[:, 0]
            yield Messages(at[None], values[:, at].transpose(0, 1), totals[:, node], weight)

    def mean_ablation(self, batches: Iterable[Batch], *, per_position: bool = False) -> Ablation:
        """Each edge's mean message, for every propagation by itself in either case."""
        totals: list[Tensor] | None = None
        count = 0
        for batch in batches:
            side = batch.clean if batch.corrupt is None else batch.corrupt
            given = self.source.features(side, batch.size)
            calls, _ = self.seen(given)
            parts = []
            for call in calls:
                mine = call.messages[call.edges >= 0]
                parts.append(mine.unflatten(0, (given.copies, self._graph.num_edges)).sum(0))
            share = batch.size // given.copies
            parts = [part * share for part in parts]
            totals = (
                parts if totals is None else [a + b for a, b in zip(totals, parts, strict=True)]
            )
            count += batch.size
        if totals is None:
            raise InputError("the mean over an empty reference set is not defined")
        return Ablation("mean", [total / count for total in totals], per_position)


def _near(found: Tensor, wanted: Tensor) -> bool:
    """Equal but for rounding."""
    room = 1e-9 if wanted.dtype == torch.float64 else 1e-4
    size = 1.0 + float(wanted.abs().max())
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= room * size
