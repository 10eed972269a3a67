"""Any module of PyG's message passing as a masked model.

The graph is the data's: its nodes, and its edges in the data's order (of a heterogeneous graph type
after type, :mod:`graphprune.adapters.gnn.relations`). A mask value holds for an edge at every layer
and step. What an ablated message becomes (zero, its mean, the corrupted run's, a learned constant)
is put in the message's place, and whatever else the layer computes (degrees, attention) stays.
Under ``delete`` the edge is absent: masks of zeros and ones are run on the smaller graph, which is
right for every layer; between them the layer must be one whose normalisation a mask can follow
(:mod:`graphprune.adapters.gnn.deletion`). A module that merges a heterogeneous graph's edge types
into one (HGTConv) shows no messages by edge type: it is run on smaller graphs, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from graphprune.core.batch import Batch
from graphprune.core.contents import fingerprint
from graphprune.core.model import Ablation, Messages, Objective
from graphprune.errors import InputError, UnsupportedModelError, unknown_name
from graphprune.util.modes import quiet

from .attributes import Copies, near
from .base import GraphModel, Sums, require_corrupt
from .message_reference import MessageReference
from .messages import each_reader, learned_constants, mean_messages
from .passing import Call, Passing, convolutions, is_fused
from .relations import ManyKinds
from .replicas import Features, OneKind, Source, Wiring
from .selfcheck import checked, outputs, require_deletes

__all__ = ["MessageModel", "MessageReference"]

_ROOM = 1 << 22  # edges side by side


class MessageModel(GraphModel):
    """See the module's text.

    Args:
        module: the user's own; used as it is.
        data: a PyG ``Data``, ``HeteroData`` or ``Batch``; what the module's ``forward`` names is
            taken from it (``x_dict``, ``edge_index_dict`` and the like of heterogeneous data, or
            ``x``, ``edge_index`` where ``to_hetero`` made the module); a module that takes the data
            itself gets data of the same kind with all its attributes.
        forward: ``(module, data) -> outputs``, how the module is called on data like the user's,
            where names do not tell (``forward(x, edge_index, edge_weight)``, weights in
            ``data.edge_attr``); ``None``: not said.
        level: ``"node"`` or ``"graph"``, what a row of the outputs is; ``None``: by its number.
        node_type: of heterogeneous data, the type of node the outputs are of; ``None``: outputs by
            type say, or the number of rows.
        means: what mean messages and learned constants are for: each ``"edge"``, or all edges of
            an edge ``"type"``; ``None``: ``"type"`` for heterogeneous data, else ``"edge"``.
        name: in provenance.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Any,
        *,
        forward: Callable[[Any, Any], Any] | None = None,
        level: str | None = None,
        node_type: str | None = None,
        means: Literal["edge", "type"] | None = None,
        name: str = "",
    ) -> None:
        from torch_geometric.data import Data, HeteroData

        if not isinstance(data, Data | HeteroData):
            several = isinstance(data, list | tuple)
            raise InputError(
                "data must be PyG's Data, HeteroData or Batch, got "
                + (
                    f"a {type(data).__name__} of {len(data)}; put graphs into one: "
                    "torch_geometric.data.Batch.from_data_list(graphs)"
                    if several
                    else f"{type(data).__name__}; give Data(x=x, edge_index=edge_index)"
                )
            )
        why = is_fused(module)
        if why:
            raise UnsupportedModelError(why)
        if level not in (None, "node", "graph"):
            raise unknown_name("level", level, ("node", "graph"))
        if means not in (None, "edge", "type"):
            raise unknown_name("means", means, ("edge", "type"))
        if any(is_lazy(value) for value in (*module.parameters(), *module.buffers())):
            raise InputError(
                f"{type(module).__name__} has sizes that its first run decides (-1 channels); run "
                "it once on the data, then wrap it"
            )
        several = isinstance(data, HeteroData)
        if node_type is not None and not several:
            raise InputError("node_type is for heterogeneous data; this graph has one type")
        self._module, self._name = module, name
        self.means = means or ("type" if several else "edge")
        self.source: Source = ManyKinds.of(data) if several else OneKind.of(data)
        if not self.source.num_edges:
            raise InputError("the graph has no edges, so there is nothing to prune")
        if not self.source.node:
            raise InputError("no node of the data has features, such as data.x")
        self._graph = self.source.graph()
        self._followed = False  # whether soft deletion was tried
        self._deletes = False  # whether running on smaller graphs was tried
        with quiet(module), torch.no_grad():
            found = checked(module, self.source, data, forward, level, node_type)
        self.source, self.plan, self.answers, self.merged = found

    @property
    def level(self) -> str:
        """``"node"`` or ``"graph"``, what a row of the outputs is."""
        return self.answers.level

    def provenance(self) -> dict[str, Any]:
        """Sizes, hashes of the weights and of the data, and the convolutions."""
        kinds = [type(conv).__name__ for conv in convolutions(self._module).values()]
        found = {**super().provenance(), "convolutions": kinds, "level": self.level}
        found["call"] = str(self.plan)
        found["data"] = fingerprint(self.source)[:16]
        if isinstance(self.source, ManyKinds):
            found["node_types"] = dict(self.source.types)
            found["relations"] = dict(zip(self.source.kinds, self.source.counts, strict=True))
        return found

    def reference(self, batch: Batch, ablation: Ablation | None = None) -> MessageReference:
        """See the base class; the default ablation is counterfactual."""
        ablation = ablation or Ablation()
        if ablation.kind != "delete":
            self._require_messages(f"{ablation.name} ablation")
        require_corrupt(batch, ablation)
        return MessageReference(self, batch, ablation)

    def _require_messages(self, what: str) -> None:
        if self.merged:
            raise UnsupportedModelError(
                f"no {what} here: {self.merged}. Masks of zeros and ones under ablation='delete' "
                "are run on the smaller graph; nothing else is right for such a layer"
            )

    # ---------------------------------------------------------------- passes

    def _raw(
        self,
        given: Features,
        numbers: Tensor,
        wiring: Wiring,
        passing: Passing | None = None,
        kept: Any = None,
    ) -> Any:
        """The module's own outputs for copies ``numbers [k]`` while ``passing`` watches."""
        copies = Copies(given.of(numbers), len(numbers), wiring, kept)
        return outputs(self._module, self.source, self.plan, copies, passing)

    def _call(self, given: Features, numbers: Tensor, passing: Passing) -> Tensor:
        """``[k, rows, V]``: outputs of copies ``numbers [k]`` while ``passing`` watches."""
        raw = self._raw(given, numbers, passing.wiring, passing)
        return self.answers.split(raw, len(numbers))

    def _smaller(self, given: Features, numbers: Tensor, kept: Tensor) -> Tensor:
        """The same on copies with the edges ``kept [k * E]`` alone; nothing is watched."""
        if not self._deletes:
            require_deletes(self._module, self.source, self.plan, self.answers)
            self._deletes = True
        wiring, which = self.source.wiring(len(numbers)).only(kept)
        return self.answers.split(self._raw(given, numbers, wiring, kept=which), len(numbers))

    @torch.no_grad()
    def seen(self, given: Features) -> tuple[list[Call], Tensor]:
        """Messages by call and outputs of the module itself, all patterns side by side."""
        numbers = torch.arange(given.copies)
        wiring = self.source.wiring(given.copies)
        with quiet(self._module):
            if self.merged:
                return [], self.answers.split(self._raw(given, numbers, wiring), len(numbers))
            passing = Passing(wiring)
            out = self._call(given, numbers, passing)
        for call in passing.calls:
            call.messages = call.messages.detach()
        return passing.calls, out

    def read(self, out: Tensor, batch: Batch, copies: Tensor) -> Tensor:
        """``[n, V]`` or ``[n, P, V]``: outputs of examples, by copy ``[n]``; n is a multiple of B.

        ``out [C, rows, V]`` holds a row for each node or graph of each copy.
        """
        times = len(copies) // batch.size
        at, copies = self.answers.at(batch), copies.to(out.device)
        at = at.repeat(times, *[1] * (at.ndim - 1)).to(out.device).clamp(min=0)
        found: Tensor = out[copies if at.ndim == 1 else copies[:, None], at]
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
        """``[k, rows, V]`` of copies ``numbers [k]``, each under its own mask ``[k, E]``."""
        delete = reference.ablation.kind == "delete"
        flat = masks.flatten()
        with quiet(self._module):
            if delete and not flat.requires_grad and bool(((flat == 0) | (flat == 1)).all()):
                return self._smaller(reference.given, numbers, flat != 0)
            if delete:
                self._require_messages("mask between 0 and 1, and no gradient of a mask,")
                self._require_followed()
            replaced = reference.replaced(numbers)
            passing = Passing(self.source.wiring(len(numbers)), flat, replaced, delete)
            return self._call(reference.given, numbers, passing)

    @torch.no_grad()
    def _require_followed(self) -> None:
        """A soft mask at zeros and ones must be the smaller graph; tried once, on drawn masks."""
        if self._followed:
            return
        given, one = self.source.plain, torch.zeros(1, dtype=torch.int64)
        wiring = self.source.wiring(1)
        generator = torch.Generator().manual_seed(0)
        for share in (0.3, 0.7):
            drawn = torch.rand(self._graph.num_edges, generator=generator) < share
            kept = drawn.to(self._like.device)
            small = self._smaller(given, one, kept)
            soft = self._call(given, one, Passing(wiring, kept.to(self._like), None, True))
            if not near(soft, small):
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
        constant: Tensor | None,
    ) -> Sums:
        self._require_messages("gradient of a mask")
        edges, batch = self._graph.num_edges, reference.batch
        copies = torch.arange(reference.given.copies)
        row = torch.ones(edges).to(self._like) if gate is None else gate
        place = torch.arange(batch.size) % reference.given.copies
        if reference.ablation.kind == "delete":
            if constant is not None:
                raise InputError(
                    "a deleted edge sends nothing to put a constant in the place of: interpolate "
                    "activations under zero, mean or counterfactual ablation"
                )
            mask = row.clone().requires_grad_(True)
            with torch.enable_grad():
                out = self.read(
                    self._masked(reference, mask.expand(len(copies), -1), copies), batch, place
                )
                (found,) = torch.autograd.grad(objective(out).sum(), mask)
            return Sums(found[:, None].detach())
        instead = reference.replaced(copies)
        wiring = self.source.wiring(len(copies))
        passing = Passing(wiring, row.repeat(len(copies)), instead, felt=True)
        if constant is not None:
            passing.constant = constant.repeat(len(copies))
            passing.clean = [call.own(len(copies)).flatten(0, 1) for call in reference.clean[0]]
        with quiet(self._module), torch.enable_grad():
            out = self._call(reference.given, copies, passing)
            total = objective(self.read(out, batch, place)).sum()
            gradients = torch.autograd.grad(
                total, [call.messages for call in passing.calls], allow_unused=True
            )
        columns: list[list[Tensor]] = [[] for _ in self.source.counts]
        fine: list[list[Tensor]] = [[] for _ in self.source.counts]
        for number, (call, gradient) in enumerate(zip(passing.calls, gradients, strict=True)):
            values = reference.clean[0][number].own(len(copies))
            change = values if instead is None else values - instead[number].view_as(values)
            felt = torch.zeros_like(values)
            if gradient is not None:
                felt = gradient[call.edges >= 0].view_as(values)
            product = (change * felt).sum(0).flatten(1).detach()
            columns[call.relation].append(product.sum(1))
            fine[call.relation].append(product)
        widths = {part.shape[1] for parts in fine for part in parts}
        if neurons and len(widths) > 1:
            raise UnsupportedModelError(
                f"messages have different widths ({sorted(widths)}) in different layers, so there "
                "are no scores by neuron"
            )
        found = torch.zeros(edges, max(map(len, columns))).to(row)
        small = torch.zeros(edges, min(widths)).to(row) if neurons else None
        for first, sums, parts in zip(self.source.firsts, columns, fine, strict=True):
            for step, (column, part) in enumerate(zip(sums, parts, strict=True)):
                found[first : first + len(column), step] = column
                if small is not None:
                    small[first : first + len(column)] += part
        return Sums(found, small)

    # ---------------------------------------------------------------- messages

    def messages(self, batch: Batch) -> Iterator[Messages]:
        """Messages by target node and relation; a position is a propagation over it.

        Narrow ones are padded by zeros; a relation that no layer uses has zeros.
        """
        reference = self.reference(batch, Ablation("zero"))
        calls, _ = reference.clean
        index, copies = self._graph.edge_index, reference.given.copies
        yield from each_reader(self.source, index, calls, copies, batch.size)

    def mean_ablation(self, batches: Iterable[Batch], *, per_position: bool = False) -> Ablation:
        """Mean messages of every propagation over the batches.

        Each edge's own, or (``means="type"``, and not ``per_position``) all edges' of a type.
        """
        self._require_messages("mean ablation")
        whole = self.means == "type" and not per_position
        return Ablation("mean", mean_messages(self, batches, whole), per_position)

    def learned_ablation(self, start: Ablation) -> Ablation:
        """Constants in place of messages, from zero or mean ablation on.

        One for each propagation and edge, or edge type where means are those (``means="type"``).
        Constants of an edge mean something where examples have features of their own: where all
        share them, runs refuse (the best constant would be the message itself).
        """
        self._require_messages("optimal ablation")
        return Ablation("optimal", learned_constants(self, start))
