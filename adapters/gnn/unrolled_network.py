"""Runs a network by its unrolled rows (:mod:`.unroll`), and keeps what runs have in common."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .schedule import Schedule
from .unroll import UnrolledRun, unroll, unroll_held
from .unrolled_compute import compute, faster, seconds
from .unrolled_run import DenseRun, Product, SparseRun, TorchRun
from .wiring import Drive, Numbers, Wiring

__all__ = ["UnrolledNetwork"]

_KEPT_RUNS = 8


# Whether first states are given, what drives nodes, whether they have biases.
_Known = tuple[bool, Drive, bool]


class _Kept(NamedTuple):
    schedule: Schedule  # kept too: its number is free again when it is gone
    run: TorchRun | None  # None until the schedule comes again


class UnrolledNetwork:
    """Computes states of a network.

    Args:
        edge_index: ``[2, E]``.
        free: ``[N]`` bool: nodes that are not clamped.
        inputs: numbers of the clamped nodes, in the order that inputs are given.
        outputs: numbers of the output nodes.
        activations: names of the nodes' activation and of the outputs'.
        product: ``"sparse"``, ``"dense"``, or ``None`` for the faster.
    """

    def __init__(
        self,
        edge_index: Tensor,
        free: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        activations: tuple[str, str],
        product: Product | None = None,
    ) -> None:
        self.activations = activations
        self.product: Product | None = product
        kind = np.zeros(len(free), dtype=np.int64)
        if activations[0] != activations[1]:
            kind[outputs.cpu().numpy()] = 1
        self._order = np.argsort(kind, kind="stable")  # the outputs' activation stands together
        self._place = np.argsort(self._order)
        zero = np.array([name != "sigmoid" for name in activations])
        self._facts: dict[str, Any] = {
            "edge_index": self._place[edge_index.cpu().numpy()],
            "inputs": self._place[inputs.cpu().numpy()],
            "free": free.cpu().numpy()[self._order],
            "keeps_zero": zero[kind[self._order]],
            "kind": kind[self._order],
        }
        self._wirings: dict[tuple[Drive, bool], Wiring] = {}
        self._runs: dict[tuple[Any, ...], _Kept] = {}
        self._held: dict[tuple[Any, ...], TorchRun | None] = {}
        self._products: dict[tuple[Any, ...], Product] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files begin without the runs that were kept."""
        return {**self.__dict__, "_wirings": {}, "_runs": {}, "_held": {}}

    def __call__(
        self,
        schedule: Schedule,
        weight: Tensor,
        bias: Tensor | None,
        x: Tensor,
        h0: Tensor | None,
        drive: Tensor | None,
        by_step: bool,
        wanted: Tensor | None,
    ) -> Tensor:
        """``[..., n, d]``: the last states of the nodes ``wanted``, or of all.

        Args:
            schedule: the updates.
            weight: ``[E]``.
            bias: ``[N]``.
            x: ``[..., n_in, d]``.
            h0: ``[..., N, d]``.
            drive: ``[..., N, d]``, or, ``by_step``, ``[steps, ..., N, d]``.
            by_step: see ``drive``.
            wanted: numbers of nodes.
        """
        d, leading = x.shape[-1], tuple(x.shape[:-2])
        if drive is not None:
            leading = np.broadcast_shapes(leading, drive.shape[1 if by_step else 0 : -2])
        constants = weight.new_tensor([0.0, 1.0]).expand(*leading, d, 2).movedim(-1, -2)
        parts = [_columns(constants, leading), _columns(x, leading)]
        free = self._order[self._facts["free"]]
        for part in (h0, *(drive if by_step and drive is not None else [drive])):
            if part is not None:
                numbers = torch.from_numpy(free).to(weight.device)
                parts.append(_columns(part.index_select(-2, numbers), leading))
        leaves = torch.cat(parts)
        one = weight.new_ones(1)
        if bias is None:
            factors = torch.cat([weight, one])
        else:
            factors = torch.cat([weight, bias.index_select(0, self._numbers(weight.device)), one])
        kind: Drive = "none" if drive is None else "by step" if by_step else "constant"
        known: _Known = (h0 is not None, kind, bias is not None)
        run, updated = self._run(schedule, known, wanted, leaves, factors)
        states = compute(run, leaves, factors, updated)
        return states.reshape(len(states), *leading, d).movedim(0, -2)

    def _numbers(self, device: torch.device) -> Tensor:
        """Nodes in the order of the rows."""
        return torch.from_numpy(self._order).to(device)

    def _run(
        self,
        schedule: Schedule,
        known: _Known,
        wanted: Tensor | None,
        leaves: Tensor,
        factors: Tensor,
    ) -> tuple[TorchRun, Tensor | None]:
        """A run of these updates, or one for any updates and these.

        It is kept where the updates come again. New updates may never do.
        """
        gradients = torch.is_grad_enabled() and (leaves.requires_grad or factors.requires_grad)
        size = leaves.shape[1].bit_length()
        # What is tried once, and decided for all runs like it.
        like = (known, wanted is None, size, gradients, leaves.device, leaves.dtype)
        key, given = (id(schedule), *like), (leaves, factors)
        sequential = schedule.update == "sequential"
        kept = self._runs.get(key)
        if kept is not None and kept.run is not None:
            return kept.run, None
        if kept is None and not sequential:
            held, updated = self._for_any(schedule, known, wanted, like, given)
            if held is not None:
                _keep(self._runs, key, _Kept(schedule, None))
                return held, updated
        lasts = sequential or kept is not None
        rows = self._unrolled(schedule, known, wanted, by_level=lasts)
        run = self._made(rows, (schedule.update, *like), *given)
        _keep(self._runs, key, _Kept(schedule, run if lasts else None))
        return run, None

    def _made(
        self,
        rows: UnrolledRun,
        kind: tuple[Any, ...],
        leaves: Tensor,
        factors: Tensor,
        updated: Tensor | None = None,
    ) -> TorchRun:
        """By the product that was, or is now found, faster for runs of a kind."""
        if kind not in self._products:
            self._products[kind] = self.product or faster(
                rows, self.activations, leaves, factors, updated
            )
        made = DenseRun if self._products[kind] == "dense" else SparseRun
        return made(rows, self.activations, leaves.device)

    def _for_any(
        self,
        schedule: Schedule,
        known: _Known,
        wanted: Tensor | None,
        like: tuple[Any, ...],
        given: tuple[Tensor, Tensor],
    ) -> tuple[TorchRun | None, Tensor | None]:
        """A run for any updates, where it takes less time than to find the rows of new ones."""
        key = (len(schedule), *like)
        if key not in self._held:
            wiring, last = self._wiring(known), self._wanted(wanted)
            rows = unroll_held(wiring, len(schedule), last, first_states=known[0])
            updated = self._updated(schedule, rows, given[0].device)
            held = self._made(rows, ("any", *like), *given, updated)

            def planned() -> TorchRun:
                rows = self._unrolled(schedule, known, wanted, by_level=False)
                return self._made(rows, (schedule.update, *like), *given)

            planned()  # its product is found once
            pays = seconds(lambda: held, *given, updated) < seconds(planned, *given)
            _keep(self._held, key, held if pays else None)
        run = self._held[key]
        if run is None:
            return None, None
        return run, self._updated(schedule, run.run, given[0].device)

    def _updated(self, schedule: Schedule, rows: UnrolledRun, device: torch.device) -> Tensor:
        """``[steps, n, 1]``: which of the nodes that have rows update."""
        assert rows.nodes is not None
        nodes = torch.from_numpy(self._order[rows.nodes])
        return torch.stack(schedule.steps).cpu()[:, nodes, None].to(device)

    def _wiring(self, known: _Known) -> Wiring:
        _, drive, bias = known
        if (drive, bias) not in self._wirings:
            self._wirings[drive, bias] = Wiring(**self._facts, drive=drive, bias=bias)
        return self._wirings[drive, bias]

    def _wanted(self, wanted: Tensor | None) -> Numbers:
        """The wanted nodes as rows number them."""
        return self._place if wanted is None else self._place[wanted.cpu().numpy()]

    def _unrolled(
        self, schedule: Schedule, known: _Known, wanted: Tensor | None, by_level: bool = True
    ) -> UnrolledRun:
        sequential = schedule.update == "sequential"
        steps = [step.cpu().numpy() for step in schedule.steps]
        if self.activations[0] != self.activations[1]:  # else rows come in the nodes' order
            steps = [self._place[step] if sequential else step[self._order] for step in steps]
        return unroll(
            self._wiring(known),
            steps,
            sequential,
            self._wanted(wanted),
            first_states=known[0],
            by_level=by_level,
        )


def _keep(kept: dict[tuple[Any, ...], Any], key: tuple[Any, ...], value: Any) -> None:
    """Keeps one more, and drops the first where there are too many."""
    while len(kept) >= _KEPT_RUNS:
        del kept[next(iter(kept))]
    kept[key] = value


def _columns(part: Tensor, leading: tuple[int, ...]) -> Tensor:
    """``[n, M]`` of ``[..., n, d]``: columns are examples and channels."""
    count, d = part.shape[-2:]
    return part.expand(*leading, count, d).movedim(-2, 0).reshape(count, math.prod(leading) * d)
