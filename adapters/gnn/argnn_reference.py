"""Clean and ablated values of a batch on an ARGNN: its trajectories, the states of every step.

A message is its source's state times the edge's weight, so states say all. In a sequential sweep a
forward edge carries the source's new state, any other edge its old one. A masked run is the same
trajectory with masked weights; what ablated messages add in their place is known before it starts
(:meth:`ARGNNReference.ablated_reads`), since they come from another run or are constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.model import Ablation, Reference
from graphprune.errors import InputError
from graphprune.util.modes import on_device, quiet

from .adjacency import WeightedAdjacency, add_at
from .argnn import ARGNN
from .graph_model import all_alike
from .schedule import Schedule

__all__ = ["ARGNNReference"]

_MOST_WEIGHTS = 1 << 24  # of messages in one call


class ARGNNReference(Reference):
    """States of the clean and, where needed, the corrupted run; made when first asked for.

    A side of the batch is ``[B, n_in]`` (``[B, n_in, d]``), or a mapping that holds ``inputs`` and,
    where wanted, ``h0 [B, N, d]`` and ``drive [B, steps, N, d]``.
    """

    def __init__(
        self, network: ARGNN, schedule: Schedule, batch: Batch, ablation: Ablation
    ) -> None:
        self.network, self.schedule = network, schedule
        self.batch, self.ablation = batch, ablation
        at, nodes = batch.positions, network.num_nodes
        if at is not None and at.numel() and int(at.max()) >= nodes:
            raise InputError(f"position {int(at.max())} is no node of a network of {nodes}")
        self.start, self._drive = self._inputs(batch.clean)

    def _inputs(self, side: Any) -> tuple[Tensor, Tensor | None]:
        """The state before the first step, and ``[steps, B, N, d]`` that drives the others."""
        side = on_device(side, self.network.edge_weight.device)
        parts = side if isinstance(side, Mapping) else {"inputs": side}
        unknown = set(parts) - {"inputs", "h0", "drive"}
        if unknown:
            raise InputError(
                f"an ARGNN takes inputs, h0 and drive, got {', '.join(sorted(unknown))}"
            )
        start = self.network.start(parts.get("inputs"), parts.get("h0"))
        start = start.expand(self.batch.size, *start.shape[-2:])
        drive = parts.get("drive")
        if drive is None:
            return start, None
        wanted = (len(start), len(self.schedule), *start.shape[1:])
        if drive.shape != wanted:
            raise InputError(f"drive must be {list(wanted)}, got {list(drive.shape)}")
        return start, drive.to(start).movedim(1, 0)

    def _trajectory(
        self,
        start: Tensor,
        drive: Tensor | None,
        adjacency: WeightedAdjacency,
        added: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """States ``[..., B, N, d]`` before the first step and after each; ``added`` to reads."""
        states = [start]
        for step in range(len(self.schedule)):
            extra = None if drive is None else drive[step]
            if added is not None:
                extra = added[step] if extra is None else extra + added[step]
            states.append(self.network.advance(states[-1], self.schedule, step, adjacency, extra))
        return states

    def _states(self, side: Any) -> list[Tensor]:
        with quiet(self.network), torch.no_grad():
            adjacency = self.network.adjacency(self.network.masked_weight())
            return self._trajectory(*self._inputs(side), adjacency)

    @cached_property
    def clean(self) -> list[Tensor]:
        """States ``[B, N, d]`` of the clean run, ``steps + 1`` of them."""
        return self._states(self.batch.clean)

    @cached_property
    def corrupt(self) -> list[Tensor]:
        """The same of the corrupted run."""
        return self._states(self.batch.corrupt)

    @property
    def nbytes(self) -> int:
        """Of the states, both runs."""
        sides = 2 if self.ablation.kind == "counterfactual" else 1
        return sides * (len(self.schedule) + 1) * self.start.numel() * self.start.element_size()

    @property
    def full(self) -> Tensor:
        """See :class:`~graphprune.core.model.Reference`."""
        return self._read(self.clean[-1])

    @property
    def ablated(self) -> Tensor:
        """See :class:`~graphprune.core.model.Reference`."""
        return self._ablated

    @cached_property
    def _ablated(self) -> Tensor:
        none = torch.zeros(1, 1, self.network.edge_index.shape[1]).to(self.start)
        with quiet(self.network), torch.no_grad():
            return self.outputs(none)[0]

    def _read(self, state: Tensor) -> Tensor:
        """``[..., B, V]`` (``[..., B, P, V]``) of ``state [..., B, N, d]``.

        At the nodes that the batch's positions name, else at the output nodes.
        """
        at = self.batch.positions
        if at is None:
            return self.network.read(state)
        index = (at[:, None] if at.ndim == 1 else at).clamp(min=0).to(state.device)
        index = index[..., None].expand(*state.shape[:-2], index.shape[-1], state.shape[-1])
        states = state.gather(-2, index)
        return states[..., 0, :] if at.ndim == 1 else states

    # ---------------------------------------------------------------- messages

    def sent(self, states: list[Tensor], step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of states ``[B, N, d]`` and the numbers of the edges that carry them."""
        if self.schedule.update != "sequential":
            yield states[step], torch.arange(self.network.edge_index.shape[1])
            return
        levels = self.schedule.levels[step]
        yield states[step], levels.backward
        yield states[step + 1], torch.nonzero(levels.forward)[:, 0]

    def messages(self, states: list[Tensor], step: int) -> Tensor:
        """``[B, E, d]``: every message of a step."""
        source = self.network.edge_index[0]
        out = states[0].new_zeros(len(states[0]), len(source), states[0].shape[-1])
        for state, edges in self.sent(states, step):
            out[:, edges] = state[:, source[edges]]
        return out * self.network.masked_weight().detach()[:, None]

    def changes_nothing(self) -> bool:
        """Whether what stands in for each message is the message; learned constants may change."""
        if self.ablation.kind in ("counterfactual", "optimal"):
            return False  # equal inputs are told before
        steps = range(len(self.schedule))
        return all_alike((self.messages(self.clean, t), self.replaced(t)) for t in steps)

    def replaced(self, step: int) -> Tensor | None:
        """``[E, d]``: constant ablation values of a step; ``None`` where they are not constant."""
        values = self._constants
        if values is None:
            return None
        return (values[step] if values.ndim == 3 else values).to(self.start)

    @property
    def _constants(self) -> Tensor | None:
        """``[E, d]``, or ``[steps, E, d]``: what stands in for messages, as it is now."""
        ablation = self.ablation
        if ablation.kind not in ("mean", "optimal"):
            return None
        values = ablation.values if ablation.kind == "mean" else ablation.parameters[0]
        edges, d = self.network.edge_index.shape[1], self.network.channels
        if not isinstance(values, Tensor) or values.shape[-2:] != (edges, d):
            raise InputError(
                f"these {ablation.kind} messages come from another model; this one has {edges} "
                f"edges and {d} channels: use model.mean_ablation or model.learned_ablation"
            )
        steps = len(self.schedule)
        if values.ndim == 3 and len(values) != steps:
            raise InputError(f"means were kept for {len(values)} steps, a run has {steps}")
        return values

    # ---------------------------------------------------------------- masked runs

    def _reads(self, states: list[Tensor], weight: Tensor) -> list[Tensor]:
        """What nodes would read of a run's messages in each step, under other weights."""
        adjacency, steps = self.network.adjacency(weight), range(len(self.schedule))
        if self.schedule.update != "sequential":
            return [adjacency.propagate(states[step]) for step in steps]

        def read(state: Tensor, edges: Tensor) -> Tensor:
            sent = adjacency.messages(state, edges)
            return add_at(sent, adjacency.target[edges], adjacency.nodes)

        return [read(*old) + read(*new) for old, new in (self.sent(states, t) for t in steps)]

    def ablated_reads(self, rows: Tensor) -> list[Tensor] | None:
        """What ablated messages add to reads in each step, under masks ``[K, 1 or B, E]``."""
        if self.ablation.kind in ("zero", "delete"):
            return None
        network = self.network
        if self.ablation.kind == "counterfactual":
            return self._reads(self.corrupt, network.masked_weight(1 - rows))
        values = self._constants
        assert values is not None
        by_step = [
            add_at((1 - rows)[..., None] * one, network.edge_index[1], network.num_nodes)
            for one in (values if values.ndim == 3 else values[None]).to(self.start)
        ]
        return by_step if values.ndim == 3 else by_step * len(self.schedule)

    def constant_reads(self, rows: Tensor, constant: Tensor) -> list[Tensor]:
        """What edges marked in ``constant [E]`` add in each step, and ablated messages as above.

        They carry the clean run's messages times ``rows [1, 1, E]``.
        """
        weight = self.network.masked_weight(rows * constant).detach()
        return _added(self._reads(self.clean, weight), self.ablated_reads(rows))

    def run(self, rows: Tensor) -> Tensor:
        """``[K, B, ...]``: outputs under masks ``[K, E]`` or ``[K, B, E]``."""
        rows = rows[:, None] if rows.ndim == 2 else rows
        each = max(1, rows.shape[-1] * max(rows.shape[1], self.batch.size))
        with quiet(self.network):
            parts = [self.outputs(masks) for masks in rows.split(max(1, _MOST_WEIGHTS // each))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def outputs(
        self,
        rows: Tensor,
        *,
        added: list[Tensor] | None = None,
        ablated: list[Tensor] | None = None,
    ) -> Tensor:
        """``[K, B, ...]`` under masks ``rows [K, 1 or B, E]``.

        In each step nodes also read what is ``ablated`` (``None`` means :meth:`ablated_reads` of
        the masks) and what is ``added`` on top.
        """
        adjacency = self.network.adjacency(self.network.masked_weight(rows))
        more = self.ablated_reads(rows) if ablated is None else ablated
        if added is not None:
            more = _added(added, more)
        last = self._trajectory(self.start, self._drive, adjacency, more)[-1]
        return self._read(last.expand(len(rows), *last.shape[-3:]))


def _added(one: list[Tensor], other: list[Tensor] | None) -> list[Tensor]:
    """Sums step by step; ``None`` means nothing."""
    return one if other is None else [a + b for a, b in zip(one, other, strict=True)]
