"""An ARGNN as a masked model: examples and masks ride along leading axes of the state.

An example is one pattern of the input nodes, ``[B, n_in]`` (``[B, n_in, d]``), and a batch is as
many of them. Outputs are the output nodes' states side by side; where a task names positions, the
states of these nodes. All runs of a model share one schedule of updates, drawn when it is wrapped:
clean, corrupted and masked runs differ in messages alone.

An edge that is not kept (``edge_keep``) stays an edge of the graph and sends nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph, Node
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.core.model import (
    Ablation,
    MaskedModel,
    Messages,
    Reference,
    require_same_batch,
)
from graphprune.errors import InputError
from graphprune.search.cut_edges import CutEdges
from graphprune.util.modes import quiet

from .adjacency import edge_products
from .argnn import ARGNN
from .argnn_reference import ARGNNReference
from .cutting import cutting_flags
from .graph_model import GradientPoint, GraphModel, PointGradients, require_corrupt
from .schedule import Schedule
from .tying import Tie, tied

__all__ = ["MaskedARGNN"]


class MaskedARGNN(GraphModel):
    """See the module's text.

    Args:
        network: the module; used as it is.
        steps: of every run; ``None`` means the module's.
        seed: draws the schedule; ``None`` means the module's.
        tie: as for a :class:`MessageModel`; a weight counts as an edge's feature, so that
            ``"auto"`` ties a network only while every weight is that of the edge's reverse.
        name: in provenance.
    """

    def __init__(
        self,
        network: ARGNN,
        *,
        steps: int | None = None,
        seed: int | None = None,
        tie: Tie = "auto",
        name: str = "",
    ) -> None:
        self._module, self._name = network, name
        generator = torch.Generator().manual_seed(network.seed if seed is None else seed)
        self.schedule: Schedule = network.schedule(steps, generator)
        weights = [network.edge_weight.detach().cpu(), network.edge_keep.cpu()]
        self._graph = tied(network_graph(network), [weights], tie)

    @property
    def _network(self) -> ARGNN:
        assert isinstance(self._module, ARGNN)
        return self._module

    def provenance(self) -> dict[str, Any]:
        """Sizes, a hash of the weights, and how it updates."""
        return {
            **super().provenance(),
            "update": self.schedule.update,
            "steps": len(self.schedule),
            "kept": int(self._network.edge_keep.sum()),
        }

    def edge_weights(self) -> Tensor:
        """The weights, zero where an edge is not kept; of tied edges their messages' sums."""
        return self._graph.per_edge(self._network.masked_weight().detach().cpu())

    def reference(self, batch: Batch, ablation: Ablation | None = None) -> ARGNNReference:
        """States of the clean and the ablated run, each computed when first needed, once."""
        ablation = ablation or Ablation()
        require_corrupt(batch, ablation)
        return ARGNNReference(self._network, self.schedule, batch, ablation)

    # ---------------------------------------------------------------- running

    def compiled(self, batch: Batch, mask: EdgeMask, reference: Reference) -> Callable[[], Tensor]:
        """A circuit with what its ablated messages add already summed, on its own edges alone."""
        require_same_graph(self._graph, mask.graph, "the model and the mask")
        require_same_batch(batch, reference)
        assert isinstance(reference, ARGNNReference)
        row = self._graph.per_message(mask.values).to(self._like)[None, None]
        with quiet(self._module), torch.no_grad():
            ablated = reference.ablated_reads(row)
        kept = self._graph.per_message(mask.kept)
        small = copy.deepcopy(self._network)
        small.edge_weight.data.mul_(row[0, 0])
        small.edge_keep &= kept.to(small.edge_keep.device)
        small = small.compact(drop_nodes=False)  # ablated messages may reach any node
        schedule = Schedule(
            self.schedule.update, small.edge_index.cpu(), small.num_nodes, self.schedule.steps
        )
        inner = ARGNNReference(small, schedule, batch, Ablation("zero"))
        ones = torch.ones(1, 1, small.edge_index.shape[1]).to(self._like)

        def run() -> Tensor:
            with quiet(small):
                return inner.outputs(ones, added=ablated)[0]

        return run

    def cutting(self) -> AbstractContextManager[CutEdges]:
        """See :class:`~graphprune.capabilities.CutsWhileTraining`."""
        return cutting_flags(self._network, self._graph)

    def widened(self) -> MaskedModel | None:
        """A copy in float64; ``None`` if it is that already."""
        if self._like.dtype == torch.float64:
            return None
        twin = copy.copy(self)
        twin._module = copy.deepcopy(self._module).double()
        return twin

    # ---------------------------------------------------------------- gradients

    def _at_point(self, reference: ARGNNReference, point: GradientPoint) -> PointGradients:
        network, start = self._network, reference.start
        # Zeros added to what nodes read in each step: gradients at them are those at the reads.
        probes = [torch.zeros_like(start).requires_grad_(True) for _ in range(len(self.schedule))]
        row = point.gate
        if row is None:
            row = torch.ones(network.edge_index.shape[1]).to(start)
        rows, ablated = row[None, None], None
        if point.constant is not None:
            ablated = reference.constant_reads(rows, point.constant)
            rows = rows * ~point.constant
        with quiet(network), torch.enable_grad():
            out = reference.outputs(rows, added=probes, ablated=ablated)[0]
            gradients = torch.autograd.grad(point.objective(out).sum(), probes)
        edge = torch.zeros(len(row), len(self.schedule)).to(start)
        neuron = torch.zeros(len(row), network.channels).to(start) if point.neurons else None
        weight = network.masked_weight().detach()
        for step, gradient in enumerate(gradients):
            instead = reference.replaced(step)
            for change, edges in self._differences(reference, step):
                index = network.edge_index[:, edges]
                edge[edges, step] = weight[edges] * edge_products(change, gradient, index)
                if neuron is not None:
                    both = (change[:, index[0]] * gradient[:, index[1]]).sum(0)
                    neuron[edges] += weight[edges, None] * both
                if instead is not None:
                    constants = instead.detach()[edges] * gradient.sum(0)[index[1]]
                    edge[edges, step] -= constants.sum(-1)
                    if neuron is not None:
                        neuron[edges] -= constants
        return PointGradients(edge.detach(), None if neuron is None else neuron.detach())

    def _differences(self, reference: ARGNNReference, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Clean (minus corrupted) states ``[B, N, d]``, and the edges that carry them."""
        if reference.ablation.kind != "counterfactual":
            yield from reference.sent(reference.clean, step)
            return
        runs = (reference.sent(run, step) for run in (reference.clean, reference.corrupt))
        for (clean, edges), (corrupt, _) in zip(*runs, strict=True):
            yield clean - corrupt, edges

    # ---------------------------------------------------------------- messages

    def _sent(self, reference: ARGNNReference, states: list[Tensor]) -> Tensor:
        """``[steps, B, E, d]``: every message of a run."""
        return torch.stack([reference.messages(states, t) for t in range(len(self.schedule))])

    def _messages(self, batch: Batch) -> Iterator[Messages]:
        """Messages by target node; a position is a step, real where the node updates in it."""
        reference = self.reference(batch, Ablation("zero"))
        sent = self._sent(reference, reference.clean)
        network = self._network
        target = network.edge_index[1]
        for node in target.unique().tolist():
            edges = torch.nonzero(target == node)[:, 0]
            values = sent[:, :, edges].permute(2, 1, 0, 3)
            total = values.sum(0)
            if network.bias is not None:
                total = total + network.bias.detach()[node]
            updates = [self._updates(step, node) for step in range(len(self.schedule))]
            weight = torch.stack(updates).to(values).expand(batch.size, -1)
            yield Messages(edges[None].cpu(), values, total, weight)

    def _updates(self, step: int, node: int) -> Tensor:
        chosen = self.schedule.steps[step]
        return (chosen == node).any() if self.schedule.update == "sequential" else chosen[node]

    def mean_ablation(self, batches: Iterable[Batch], *, per_position: bool = False) -> Ablation:
        """Each edge's mean message ``[E, d]``; ``per_position``: of a step, ``[steps, E, d]``."""
        total, count = None, 0
        for batch in batches:
            clean = batch.corrupt is None
            reference = self.reference(batch, Ablation("zero" if clean else "counterfactual"))
            states = reference.clean if clean else reference.corrupt
            sums = [state.sum(0, keepdim=True) for state in states]
            part = self._sent(reference, sums)[:, 0]
            total = part if total is None else total + part
            count += batch.size
        if total is None:
            raise InputError("the mean over an empty reference set is not defined")
        mean_message = total / count
        return Ablation(
            "mean", mean_message if per_position else mean_message.mean(0), per_position
        )

    def learned_ablation(self, start: Ablation) -> Ablation:
        """One constant for each edge, from zero or mean ablation on."""
        return self._learned(start)

    def _zero_messages(self) -> list[Tensor]:
        network = self._network
        return [network.edge_weight.new_zeros(network.edge_index.shape[1], network.channels)]


def network_graph(network: ARGNN) -> ComputationalGraph:
    """The network's nodes, named by number, and all its edges in order."""
    clamped = set(network.input_nodes.tolist())
    read = set(network.output_nodes.tolist())
    kinds = [
        "input" if n in clamped else "output" if n in read else "hidden"
        for n in range(network.num_nodes)
    ]
    everything = tuple(range(network.num_nodes))
    return ComputationalGraph(
        nodes=tuple(Node(str(n), kind=kind) for n, kind in enumerate(kinds)),
        edge_index=network.edge_index.cpu().clone(),
        edge_kind=torch.zeros(network.edge_index.shape[1], dtype=torch.uint8),
        inputs=tuple(sorted(clamped)) or everything,
        outputs=tuple(sorted(read)),
    )
