"""The reference asynchronous recurrent graph neural network.

Node v holds a state h_v of ``channels`` numbers. An update reads ``sum over edges u -> v of
weight * h_u``, plus a bias, and puts it through the activation. Input nodes are clamped: their
state is the input and never changes. Which nodes update when is the schedule's matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError, unknown_name

from .adjacency import WeightedAdjacency, add_at
from .schedule import UPDATES, Schedule, Update, make_schedule

__all__ = ["ACTIVATIONS", "ARGNN"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "identity": lambda x: x,
}


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
        _check_settings(update, rate, activation, output_activation)
        edges = torch.as_tensor(edge_index, dtype=torch.int64)
        if edges.ndim != 2 or edges.shape[0] != 2:
            raise InputError(f"edge_index must be [2, E], got {list(edges.shape)}")
        count = int(edges.max()) + 1 if edges.numel() else 0
        nodes = count if num_nodes is None else num_nodes
        if nodes < count or (edges.numel() and int(edges.min()) < 0):
            raise InputError(f"edge_index names a node outside 0..{nodes - 1}")
        clamped = _numbers(inputs, nodes, "inputs")
        free = torch.ones(nodes, dtype=torch.bool)
        free[clamped] = False
        into = edges[1][~free[edges[1]]]
        if len(into):
            raise InputError(
                f"an edge leads into node {int(into[0])}, which is clamped: its state never "
                "changes, so leave the edge out"
            )
        read = torch.nonzero(free)[:, 0] if outputs is None else _numbers(outputs, nodes, "outputs")
        self.num_nodes, self.channels, self.steps = nodes, channels, steps
        self.update_rule, self.rate, self.seed = update, rate, seed
        self.activation, self.output_activation = activation, output_activation
        self.register_buffer("edge_index", edges.clone())
        self.register_buffer("edge_keep", torch.ones(edges.shape[1], dtype=torch.bool))
        self.register_buffer("input_nodes", clamped)
        self.register_buffer("output_nodes", read)
        self.register_buffer("free", free)
        self.edge_weight = nn.Parameter(_first_weights(edges, nodes, weight, seed))
        self.bias = nn.Parameter(torch.zeros(nodes)) if bias else None

    # ---------------------------------------------------------------- running

    def schedule(
        self, steps: int | None = None, generator: torch.Generator | None = None
    ) -> Schedule:
        """Draws the updates of a run; without a generator the same ones each time, by ``seed``."""
        if generator is None:
            generator = torch.Generator().manual_seed(self.seed)
        count = self.steps if steps is None else steps
        return make_schedule(
            self.update_rule, self.edge_index, self.free, count, generator, self.rate
        )

    def start(self, x: Tensor | None, h0: Tensor | None = None) -> Tensor:
        """``[..., N, d]``: the state before the first step, inputs clamped.

        ``x`` is ``[..., n_in]`` where a state is one number, else ``[..., n_in, d]``;
        ``h0 [..., N, d]`` or ``None`` for zeros.
        """
        count, d = len(self.input_nodes), self.channels
        if x is None:
            if count:
                raise InputError(f"the network has {count} input nodes, but no input came")
            if h0 is None:
                return self.edge_weight.new_zeros(self.num_nodes, d)
            return self._checked_state(h0)
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
        if schedule is None:
            schedule = self.schedule(steps, generator)
        state = self.start(x, h0)
        weight = self.masked_weight(edge_mask)
        by_step = drive is not None and drive.ndim == state.ndim + 1
        if drive is not None and by_step and len(drive) != len(schedule):
            raise InputError(f"drive has {len(drive)} steps, the run {len(schedule)}")
        adjacency = None if self._is_listened_to() else self.adjacency(weight)
        for number in range(len(schedule)):
            extra = drive[number] if drive is not None and by_step else drive
            state = self.advance(state, schedule, number, adjacency, extra)
        return state

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
    def compact(self) -> ARGNN:
        """A network without the edges that are not kept: the one to deploy."""
        small = copy.deepcopy(self)
        kept = self.edge_keep
        small.edge_index, small.edge_keep = self.edge_index[:, kept], kept[kept]
        small.edge_weight = nn.Parameter(self.edge_weight[kept])
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


def _numbers(given: Iterable[int], nodes: int, what: str) -> Tensor:
    numbers = torch.as_tensor(list(given), dtype=torch.int64)
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < nodes:
        raise InputError(f"{what} names a node outside 0..{nodes - 1}")
    if len(numbers.unique()) != len(numbers):
        raise InputError(f"{what} names a node twice")
    return numbers


def _check_settings(update: str, rate: float, *activations: str | None) -> None:
    if update not in UPDATES:
        raise unknown_name("update", update, UPDATES)
    if not 0 < rate <= 1:
        raise InputError(f"rate is the chance of an update, in (0, 1], got {rate!r}")
    for activation in activations:
        if activation is not None and activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)


def _first_weights(edges: Tensor, nodes: int, weight: Tensor | None, seed: int) -> Tensor:
    count = edges.shape[1]
    if weight is None:
        generator = torch.Generator().manual_seed(seed)
        degree = torch.bincount(edges[1], minlength=nodes).clamp(min=1)
        return torch.randn(count, generator=generator) / degree[edges[1]].sqrt()
    given = torch.as_tensor(weight)
    if given.shape != (count,) or not given.is_floating_point():
        raise InputError(f"weight must be [{count}] floats, got {list(given.shape)} {given.dtype}")
    if not bool(torch.isfinite(given).all()):
        raise InputError(f"{int((~torch.isfinite(given)).sum())} weights are NaN or infinite")
    return given.detach().clone()
