"""The reference asynchronous recurrent graph neural network.

Node v holds a state h_v of ``channels`` numbers. An update reads ``sum over edges u -> v of
weight * h_u``, plus a bias, and puts it through the activation. Input nodes are clamped: their
state is the input and never changes. Which nodes update when is the schedule's matter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError, unknown_name

from . import argnn_settings as settings
from .adjacency import WeightedAdjacency, add_at
from .argnn_settings import ACTIVATIONS
from .compaction import Compaction, needed_nodes
from .schedule import Schedule, Update, make_schedule
from .unrolled_run import PRODUCTS, Product

__all__ = ["ARGNN"]


class ARGNN(MessagePassing):
    """A recurrent network on a fixed directed graph with a signed weight on every edge.

    Args:
        edge_index: ``[2, E]``, sources over targets.
        num_nodes: N; ``None`` means one more than the highest number named.
        inputs: numbers of the clamped nodes, in the order inputs are given. No edge may enter one.
        outputs: numbers of the nodes that :meth:`read` gives; ``None`` means all but the inputs.
        channels: size d of a state.
        activation: ``"tanh"``, ``"sigmoid"``, ``"relu"`` or ``"identity"``.
        output_activation: that of the output nodes, if another.
        bias: whether every node has a learned bias.
        update: ``"sequential"``, ``"bernoulli"`` or ``"synchronous"``; see
            :mod:`graphprune.adapters.gnn.schedule`.
        rate: the chance of an update in a Bernoulli step.
        steps: steps (sweeps) of a run.
        weight: ``[E]`` first weights; ``None`` means normal, of variance 1 / in-degree.
        seed: draws first weights, and the schedules of runs that name no generator.

    Attributes:
        edge_weight: the parameter ``[E]``.
        edge_keep: ``[E]`` bool buffer; edges where it is False carry nothing.
        dense_gradient: ``None``, or ``[E]``: the sum, since it was set to zeros, of the loss's
            gradients by each edge's weight as it counts in a training run: 0 where an edge is cut,
            so that ``edge_weight.grad`` is 0 there and this says what the edge would change.
        compaction: ``None``, or, of a network that :meth:`compact` made, how it runs and which
            nodes of the whole network it has (``compaction.nodes``).

    Example:
        >>> net = ARGNN(torch.tensor([[0, 1, 2], [1, 2, 1]]), inputs=[0], outputs=[2],
        ...             activation="identity", weight=torch.tensor([1.0, 2.0, -0.5]),
        ...             update="synchronous", steps=3)
        >>> net(torch.tensor([1.0]))[:, 0].tolist()
        [1.0, 0.0, 2.0]
        >>> net.read(net(torch.tensor([[1.0], [3.0]]))).tolist()
        [[2.0], [6.0]]
    """

    edge_index: Tensor
    edge_keep: Tensor
    input_nodes: Tensor
    output_nodes: Tensor
    free: Tensor
    update_rule: Update
    dense_gradient: Tensor | None = None
    compaction: Compaction | None = None

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int | None = None,
        *,
        inputs: Iterable[int] = (),
        outputs: Iterable[int] | None = None,
        channels: int = 1,
        activation: str = "tanh",
        output_activation: str | None = None,
        bias: bool = False,
        update: Update = "bernoulli",
        rate: float = 0.5,
        steps: int = 10,
        weight: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(aggr="add")
        settings.check_settings(update, rate, activation, output_activation)
        edges, nodes = settings.checked_edges(edge_index, num_nodes)
        clamped = settings.node_numbers(inputs, nodes, "inputs")
        free = settings.free_nodes(edges, nodes, clamped)
        read = torch.nonzero(free)[:, 0]
        if outputs is not None:
            read = settings.node_numbers(outputs, nodes, "outputs")
        self.num_nodes, self.channels, self.steps = nodes, channels, steps
        self.update_rule, self.rate, self.seed = update, rate, seed
        self.activation, self.output_activation = activation, output_activation
        self.register_buffer("edge_index", edges.clone())
        self.register_buffer("edge_keep", torch.ones(edges.shape[1], dtype=torch.bool))
        self.register_buffer("input_nodes", clamped)
        self.register_buffer("output_nodes", read)
        self.register_buffer("free", free)
        self.edge_weight = nn.Parameter(settings.first_weights(edges, nodes, weight, seed))
        self.bias = nn.Parameter(torch.zeros(nodes)) if bias else None

    # ---------------------------------------------------------------- running

    def schedule(
        self, steps: int | None = None, generator: torch.Generator | None = None
    ) -> Schedule:
        """Draws the updates of a run; without a generator the same ones each time, by ``seed``.

        A compacted network draws those of the network that it was made from.
        """
        count = self.steps if steps is None else steps
        whole = self.compaction
        drawn_by = (self.update_rule, count, self.rate, self.seed)
        if self.update_rule == "synchronous":
            generator = None  # nothing is drawn
        if whole is not None and generator is None and drawn_by in whole.schedules:
            return whole.schedules[drawn_by]
        drawing = torch.Generator().manual_seed(self.seed) if generator is None else generator
        free = self.free if whole is None else whole.free
        made = make_schedule(self.update_rule, self.edge_index, free, count, drawing, self.rate)
        if whole is None:
            return made
        made = made.among(whole.nodes, self.edge_index)
        if generator is None:
            whole.schedules[drawn_by] = made
        return made

    def start(self, x: Tensor | None, h0: Tensor | None = None) -> Tensor:
        """``[..., N, d]``: the state before the first step, inputs clamped.

        ``x`` is ``[..., n_in]`` where a state is one number, else ``[..., n_in, d]``;
        ``h0 [..., N, d]`` or ``None`` for zeros.
        """
        count, d = len(self.input_nodes), self.channels
        if x is None:
            if count:
                raise InputError(f"the network has {count} input nodes, but no input came")
            zeros = self.edge_weight.new_zeros(self.num_nodes, d)
            return zeros if h0 is None else self._checked_state(h0)
        wanted = (count,) if d == 1 else (count, d)
        if x.shape[-len(wanted) :] != wanted:
            raise InputError(
                f"inputs must be [..., {', '.join(map(str, wanted))}] (input nodes"
                f"{'' if d == 1 else ', channels'}), got {list(x.shape)}"
            )
        x = (x[..., None] if d == 1 else x).to(self.edge_weight.dtype)
        shape = (*x.shape[:-2], self.num_nodes, d)
        base = x.new_zeros(shape) if h0 is None else self._checked_state(h0).expand(shape)
        return base.index_copy(-2, self.input_nodes, x)

    def _checked_state(self, h0: Tensor) -> Tensor:
        if h0.shape[-2:] != (self.num_nodes, self.channels):
            raise InputError(
                f"h0 must be [..., {self.num_nodes}, {self.channels}], got {list(h0.shape)}"
            )
        return h0.to(self.edge_weight.dtype)

    def forward(
        self,
        x: Tensor | None = None,
        h0: Tensor | None = None,
        *,
        steps: int | None = None,
        schedule: Schedule | None = None,
        generator: torch.Generator | None = None,
        edge_mask: Tensor | None = None,
        drive: Tensor | None = None,
    ) -> Tensor:
        """The state ``[..., N, d]`` after all steps; give it back as ``h0`` to go on from it.

        Args:
            x: inputs of the clamped nodes; see :meth:`start`.
            h0: the state to start from.
            steps: instead of the module's own number.
            schedule: the updates; ``None`` draws them from ``generator`` (or by ``seed``).
            generator: draws the schedule.
            edge_mask: ``[..., E]`` factors on messages.
            drive: ``[..., N, d]`` added to what nodes read, at every step; with a leading axis of
                the steps (then ``[steps, ..., N, d]`` with the axes of the state) one each.
        """
        return self._states(None, x, h0, steps, schedule, generator, edge_mask, drive)

    def predict(self, x: Tensor | None = None, h0: Tensor | None = None, **run: Any) -> Tensor:
        """``[..., n_out * d]``: :meth:`read` of :meth:`forward`, which takes the same arguments.

        A compacted network computes nothing that these outputs do not need.
        """
        return self._states(self.output_nodes, x, h0, **run).flatten(-2)

    def _states(
        self,
        wanted: Tensor | None,
        x: Tensor | None,
        h0: Tensor | None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        generator: torch.Generator | None = None,
        edge_mask: Tensor | None = None,
        drive: Tensor | None = None,
    ) -> Tensor:
        """``[..., n, d]``: the last states of the nodes ``wanted``, or of all."""
        if schedule is None:
            schedule = self.schedule(steps, generator)
        small = self.compaction
        if small is not None:
            schedule = small.own_schedule(schedule, self.edge_index)
            h0, drive = small.own_nodes(h0), small.own_nodes(drive)
        state = self.start(x, h0)
        weight = self.masked_weight(edge_mask)
        by_step = drive is not None and drive.ndim == state.ndim + 1
        if drive is not None and by_step and len(drive) != len(schedule):
            raise InputError(f"drive has {len(drive)} steps, the run {len(schedule)}")
        listened = self._is_listened_to()
        if small is not None and weight.ndim == 1 and not listened:
            names = self.activation, self.output_activation or self.activation
            ends = self.input_nodes, self.output_nodes
            runs = small.unrolled(self.edge_index, self.free, *ends, names)
            clamped = state.index_select(-2, self.input_nodes)
            return runs(schedule, weight, self.bias, clamped, h0, drive, by_step, wanted)
        adjacency = None if listened else self.adjacency(weight)
        for number in range(len(schedule)):
            extra = drive[number] if drive is not None and by_step else drive
            state = self.advance(state, schedule, number, adjacency, extra)
        return state if wanted is None else state.index_select(-2, wanted)

    def masked_weight(self, edge_mask: Tensor | None = None) -> Tensor:
        """``[..., E]``: weights, zero where an edge is not kept, times the mask."""
        weight = self.edge_weight * self.edge_keep
        if self.dense_gradient is not None and self.training and weight.requires_grad:
            weight.register_hook(self._add_gradient)
        return weight if edge_mask is None else weight * edge_mask.to(weight.dtype)

    def _add_gradient(self, gradient: Tensor) -> None:
        assert self.dense_gradient is not None
        self.dense_gradient = self.dense_gradient.to(gradient) + gradient.detach()

    def read(self, state: Tensor) -> Tensor:
        """``[..., n_out * d]``: the states of the output nodes side by side."""
        return state.index_select(-2, self.output_nodes).flatten(-2)

    def adjacency(self, weight: Tensor) -> WeightedAdjacency:
        """What carries states along the edges under ``weight [..., E]``."""
        return WeightedAdjacency(self.edge_index, weight, self.num_nodes)

    def _is_listened_to(self) -> bool:
        """Whether PyG's own propagation has to be used: someone listens to messages."""
        steps = ("message_forward", "propagate_forward", "aggregate_forward")
        listens = any(
            getattr(self, f"_{step}{when}_hooks") for step in steps for when in ("", "_pre")
        )
        return bool(listens or self.explain) and self.update_rule != "sequential"

    def advance(
        self,
        state: Tensor,
        schedule: Schedule,
        number: int,
        adjacency: WeightedAdjacency | None,
        extra: Tensor | None = None,
    ) -> Tensor:
        """The state after step ``number`` of a schedule; ``extra`` is added to what is read.

        Without ``adjacency`` PyG's own propagation carries the messages, and its hooks are called.
        """
        base = extra
        if self.bias is not None:
            base = self.bias[:, None] if extra is None else extra + self.bias[:, None]
        if schedule.update == "sequential":
            assert adjacency is not None
            return self._sweep(state, schedule, number, adjacency, base)
        if adjacency is None:
            weight = self.masked_weight()
            size = (self.num_nodes, self.num_nodes)
            read = self.propagate(self.edge_index, x=state, weight=weight[:, None], size=size)
        else:
            read = adjacency.propagate(state)
        new = self._activate(read if base is None else read + base)
        updated = schedule.steps[number].to(state.device)
        return torch.where(updated[:, None], new, state)

    def message(  # pyright: ignore[reportIncompatibleMethodOverride] - of any arguments
        self, x_j: Tensor, weight: Tensor
    ) -> Tensor:
        """The state of an edge's source times the edge's weight."""
        return x_j * weight

    def _activate(self, read: Tensor, nodes: Tensor | None = None) -> Tensor:
        """The activation of ``read [..., n, d]``, what all nodes (or some) read."""
        out = ACTIVATIONS[self.activation](read)
        if self.output_activation is None or self.output_activation == self.activation:
            return out
        last = ACTIVATIONS[self.output_activation](read)
        ends = torch.zeros(self.num_nodes, dtype=torch.bool, device=read.device)
        ends[self.output_nodes] = True
        return torch.where((ends if nodes is None else ends[nodes])[:, None], last, out)

    def _sweep(
        self,
        state: Tensor,
        schedule: Schedule,
        number: int,
        adjacency: WeightedAdjacency,
        base: Tensor | None,
    ) -> Tensor:
        """One sequential sweep, level by level: what node by node gives, in fewer operations."""
        levels = schedule.levels[number]
        old = adjacency.messages(state, levels.backward)
        read = add_at(old, adjacency.target[levels.backward], self.num_nodes)
        if base is not None:
            read = read + base
        state = state.expand(read.shape)
        for nodes, edges, positions in zip(levels.nodes, levels.edges, levels.places, strict=True):
            reads = read.index_select(-2, nodes)
            if len(edges):
                reads = reads.index_add(-2, positions, adjacency.messages(state, edges))
            state = state.index_copy(-2, nodes, self._activate(reads, nodes))
        return state

    # ---------------------------------------------------------------- pruning

    @torch.no_grad()
    def keep(self, mask: EdgeMask | Tensor | None) -> ARGNN:
        """Carries on with the edges of a mask alone (``None`` means all again); gives the module.

        ``mask`` is an :class:`~graphprune.EdgeMask` over this network's edges or ``[E]``; an edge
        is kept where it is not 0.
        """
        if mask is None:
            self.edge_keep.fill_(True)
            return self
        values = mask.graph.per_message(mask.values) if isinstance(mask, EdgeMask) else mask
        if values.shape != self.edge_keep.shape:
            raise InputError(
                f"the network has {len(self.edge_keep)} edges, the mask {list(values.shape)}"
            )
        self.edge_keep.copy_(values != 0)
        return self

    @torch.no_grad()
    def compact(self, *, drop_nodes: bool = True, product: Product | None = None) -> ARGNN:
        """A network without the edges that are not kept: the one to deploy, or to train on.

        It gives the same outputs and gradients, computes no state that is not needed or already
        known, and draws the same updates. Nodes from which no path leads to an output are gone, so
        states are those of the nodes ``compaction.nodes`` of this network; it takes schedules,
        first states and drives of either network.

        Args:
            drop_nodes: whether nodes go.
            product: ``"sparse"`` or ``"dense"``; ``None`` tries both when it first runs.

        Example:
            >>> net = ARGNN(torch.tensor([[0, 1, 2], [1, 2, 1]]), 4, inputs=[0], outputs=[1],
            ...             weight=torch.tensor([1.0, 2.0, -0.5]))
            >>> small = net.keep(torch.tensor([1, 1, 0])).compact()
            >>> small, small.compaction.nodes.tolist()
            (ARGNN(2 nodes, 1 of 1 edges, bernoulli, 10 steps), [0, 1])
        """
        if product not in (None, *PRODUCTS):
            raise unknown_name("product", product, PRODUCTS)
        small = copy.deepcopy(self)
        nodes = place = torch.arange(self.num_nodes, device=self.edge_index.device)
        if drop_nodes:
            edges = self.edge_index[:, self.edge_keep]
            nodes = needed_nodes(edges, self.num_nodes, self.input_nodes, self.output_nodes)
            place = torch.full_like(place, -1)
            place[nodes] = torch.arange(len(nodes), device=nodes.device)
        kept = self.edge_keep & (place[self.edge_index[1]] >= 0)
        small.num_nodes, small.free = len(nodes), self.free[nodes]
        small.edge_index, small.edge_keep = place[self.edge_index[:, kept]], kept[kept]
        small.input_nodes, small.output_nodes = place[self.input_nodes], place[self.output_nodes]
        small.edge_weight = nn.Parameter(self.edge_weight[kept])
        if self.bias is not None:
            small.bias = nn.Parameter(self.bias[nodes])
        small.compaction = Compaction.following(self.compaction, nodes, self.free, product)
        small.dense_gradient = None
        small.requires_grad_(True).zero_grad()
        return small

    def extra_repr(self) -> str:
        """What it is, in words."""
        return (
            f"{self.num_nodes} nodes, {int(self.edge_keep.sum())} of {len(self.edge_keep)} edges, "
            f"{self.update_rule}, {self.steps} steps"
        )

    def __repr__(self) -> str:
        return f"ARGNN({self.extra_repr()})"
