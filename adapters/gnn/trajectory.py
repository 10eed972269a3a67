"""Clean and ablated values of a batch on an ARGNN: the states of every step.

A message is its source's state times the edge's weight, so states say all. In a sequential sweep a
forward edge carries the source's new state, any other edge its old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.model import Ablation, Reference
from graphprune.core.sanity_checks import equal_but_for_rounding
from graphprune.errors import InputError
from graphprune.util.modes import quiet

from .argnn import ARGNN
from .schedule import Schedule
from .wiring import Wiring, add_at

__all__ = ["Given", "Reading", "RecurrentReference", "trajectory"]


@dataclass(frozen=True, eq=False)
class Given:
    """What one side of a batch gives the network: its start and what drives it on the way."""

    start: Tensor
    drive: Tensor | None = None

    @classmethod
    def read(cls, network: ARGNN, side: Any, size: int, steps: int) -> Given:
        """From ``[B, n_in]`` (``[B, n_in, d]``), or a mapping.

        A mapping holds ``inputs`` and, where wanted, ``h0 [B, N, d]`` and
        ``drive [B, steps, N, d]``.
        """
        parts = side if isinstance(side, Mapping) else {"inputs": side}
        unknown = set(parts) - {"inputs", "h0", "drive"}
        if unknown:
            raise InputError(
                f"an ARGNN takes inputs, h0 and drive, got {', '.join(sorted(unknown))}"
            )
        start = network.start(parts.get("inputs"), parts.get("h0"))
        start = start.expand(size, *start.shape[-2:])
        drive = parts.get("drive")
        if drive is not None:
            wanted = (size, steps, network.num_nodes, network.channels)
            if drive.shape != wanted:
                raise InputError(f"drive must be {list(wanted)}, got {list(drive.shape)}")
            drive = drive.to(start).movedim(1, 0)
        return cls(start, drive)


def trajectory(
    network: ARGNN,
    plan: Schedule,
    given: Given,
    wiring: Wiring,
    extra: list[Tensor] | None = None,
) -> list[Tensor]:
    """States ``[..., B, N, d]`` before the first step and after each; ``extra`` adds to reads."""
    states = [given.start]
    for step in range(len(plan)):
        added = None if given.drive is None else given.drive[step]
        if extra is not None:
            added = extra[step] if added is None else added + extra[step]
        states.append(network.advance(states[-1], plan, step, wiring, added))
    return states


@dataclass(frozen=True, eq=False)
class Reading:
    """Where outputs are read: at ``nodes [B, P]`` of each example, or at the output nodes."""

    nodes: Tensor | None
    single: bool

    @classmethod
    def of(cls, batch: Batch, nodes: int) -> Reading:
        """From a batch's positions, which are node numbers here."""
        at = batch.positions
        if at is None:
            return cls(None, False)
        if at.numel() and int(at.max()) >= nodes:
            raise InputError(f"position {int(at.max())} is no node of a network of {nodes}")
        return cls(at[:, None] if at.ndim == 1 else at, at.ndim == 1)

    def __call__(self, network: ARGNN, state: Tensor) -> Tensor:
        """``[..., B, V]`` (or ``[..., B, P, V]``) of ``state [..., B, N, d]``."""
        if self.nodes is None:
            return network.read(state)
        index = self.nodes.clamp(min=0).to(state.device)
        index = index[..., None].expand(*state.shape[:-2], index.shape[-1], state.shape[-1])
        found = state.gather(-2, index)
        return found[..., 0, :] if self.single else found


class RecurrentReference(Reference):
    """States of the clean and, where needed, the corrupted run; made when first asked for."""

    def __init__(self, network: ARGNN, plan: Schedule, batch: Batch, ablation: Ablation) -> None:
        self.network, self.plan = network, plan
        self.batch, self.ablation = batch, ablation
        self.reading = Reading.of(batch, network.num_nodes)
        self.given = Given.read(network, batch.clean, batch.size, len(plan))

    def _states(self, given: Given) -> list[Tensor]:
        with quiet(self.network), torch.no_grad():
            weight = self.network.masked_weight()
            wiring = Wiring(self.network.edge_index, weight, self.network.num_nodes)
            return trajectory(self.network, self.plan, given, wiring)

    @cached_property
    def clean(self) -> list[Tensor]:
        """States ``[B, N, d]`` of the clean run, ``steps + 1`` of them."""
        return self._states(self.given)

    @cached_property
    def corrupt(self) -> list[Tensor]:
        """The same of the corrupted run."""
        size, steps = self.batch.size, len(self.plan)
        return self._states(Given.read(self.network, self.batch.corrupt, size, steps))

    @property
    def nbytes(self) -> int:
        """Of the states, both runs."""
        each = self.given.start.numel() * self.given.start.element_size()
        sides = 2 if self.ablation.kind == "counterfactual" else 1
        return sides * (len(self.plan) + 1) * each

    def changes_nothing(self) -> bool:
        """Whether what stands in for each message is the message; learned constants may change."""
        kind = self.ablation.kind
        if kind in ("counterfactual", "optimal"):
            return False  # equal inputs are told before
        weight = self.network.masked_weight().detach()
        for step in range(len(self.plan)):
            instead = self.replaced(step)
            for states, edges in self.sent(self.clean, step):
                source = self.network.edge_index[0, edges]
                own = states[:, source] * weight[edges, None]
                if instead is None:
                    if bool(own.any()):
                        return False
                elif not equal_but_for_rounding(own, instead[edges].expand_as(own)):
                    return False
        return True

    @property
    def full(self) -> Tensor:
        """See :class:`~graphprune.core.model.Reference`."""
        return self.reading(self.network, self.clean[-1])

    @cached_property
    def ablated(self) -> Tensor:
        """See :class:`~graphprune.core.model.Reference`."""
        none = torch.zeros(1, 1, self.network.edge_index.shape[1]).to(self.given.start)
        with quiet(self.network), torch.no_grad():
            return self.masked(none)[0]

    # ---------------------------------------------------------------- messages

    def replaced(self, step: int) -> Tensor | None:
        """``[E, d]``: constant ablation values of a step; ``None`` where they are not constant."""
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
        if values.ndim == 3 and len(values) != len(self.plan):
            raise InputError(f"means were kept for {len(values)} steps, a run has {len(self.plan)}")
        return (values[step] if values.ndim == 3 else values).to(self.given.start)

    def carried(self, states: list[Tensor], wiring: Wiring, step: int) -> Tensor:
        """What all nodes would read of a run's messages in a step, under a wiring's weights."""
        if self.plan.update != "sequential":
            return wiring.carry(states[step])
        levels = self.plan.levels[step]
        forward = torch.nonzero(levels.forward)[:, 0]
        return sum(
            add_at(wiring.messages(states[at], edges), wiring.target[edges], wiring.nodes)
            for at, edges in ((step, levels.backward), (step + 1, forward))
        )  # type: ignore[return-value]

    def sent(self, states: list[Tensor], step: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Pairs of states ``[B, N, d]`` and the numbers of the edges that carry them."""
        if self.plan.update != "sequential":
            return ((states[step], torch.arange(self.network.edge_index.shape[1])),)
        levels = self.plan.levels[step]
        forward = torch.nonzero(levels.forward)[:, 0]
        return ((states[step], levels.backward), (states[step + 1], forward))

    def offsets(self, rows: Tensor) -> list[Tensor] | None:
        """What ablated messages add to reads in each step, under masks ``[K, 1 or B, E]``."""
        kind = self.ablation.kind
        if kind in ("zero", "delete"):
            return None
        network = self.network
        if kind == "counterfactual":
            weight = network.masked_weight(1 - rows)
            wiring = Wiring(network.edge_index, weight, network.num_nodes)
            return [self.carried(self.corrupt, wiring, t) for t in range(len(self.plan))]
        found: list[Tensor] = []
        for step in range(len(self.plan)):
            values = self.replaced(step)
            assert values is not None
            same = found and isinstance(self._values, Tensor) and self._values.ndim == 2
            found.append(
                found[0]
                if same
                else add_at((1 - rows)[..., None] * values, network.edge_index[1],
                            network.num_nodes)
            )  # fmt: skip
        return found

    def with_constants(self, rows: Tensor, constant: Tensor) -> list[Tensor]:
        """What edges marked in ``constant [E]`` add in each step, and ablated messages as above.

        They carry the clean run's messages times ``rows [1, 1, E]``.
        """
        network = self.network
        weight = network.masked_weight(rows * constant).detach()
        wiring = Wiring(network.edge_index, weight, network.num_nodes)
        held = [self.carried(self.clean, wiring, step) for step in range(len(self.plan))]
        ablated = self.offsets(rows)
        return held if ablated is None else [a + b for a, b in zip(held, ablated, strict=True)]

    @property
    def _values(self) -> Any:
        ablation = self.ablation
        return ablation.values if ablation.kind == "mean" else ablation.parameters[0]

    def masked(
        self, rows: Tensor, extra: list[Tensor] | None = None, offsets: list[Tensor] | None = None
    ) -> Tensor:
        """``[K, B, ...]``: outputs under masks ``[K, 1 or B, E]``; ``extra`` adds to reads."""
        network = self.network
        weight = network.masked_weight(rows)
        wiring = Wiring(network.edge_index, weight, network.num_nodes)
        added = self.offsets(rows) if offsets is None else offsets
        if extra is not None:
            added = extra if added is None else [a + b for a, b in zip(added, extra, strict=True)]
        last = trajectory(network, self.plan, self.given, wiring, added)[-1]
        last = last.expand(len(rows), *last.shape[-3:])
        return self.reading(network, last)
