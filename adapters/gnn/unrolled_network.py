"""Runs a network by its unrolled rows (:mod:`.unroll`), and keeps what runs have in common."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .schedule import Schedule
from .unroll import UnrolledRun, unroll
from .unrolled_run import DenseRun, Product, SparseRun, TorchRun, compute, faster
from .wiring import Drive, Wiring

__all__ = ["UnrolledNetwork"]

_KEPT_RUNS = 4


class _Kept(NamedTuple):
    schedule: Schedule  # kept too: its number is free again when it is gone
    run: TorchRun
    comes_again: bool


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
        self.activations, self.product = activations, product
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
        self._products: dict[tuple[Any, ...], Product] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files begin without the runs that were kept."""
        return {**self.__dict__, "_wirings": {}, "_runs": {}}

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
        known = (h0 is not None, kind, bias is not None)
        run = self._run(schedule, known, wanted, leaves, factors)
        states = compute(run, leaves, factors)
        return states.reshape(len(states), *leading, d).movedim(0, -2)

    def _numbers(self, device: torch.device) -> Tensor:
        """Nodes in the order of the rows."""
        return torch.from_numpy(self._order).to(device)

    def _run(
        self,
        schedule: Schedule,
        known: tuple[bool, Drive, bool],
        wanted: Tensor | None,
        leaves: Tensor,
        factors: Tensor,
    ) -> TorchRun:
        """The rows of a run, from those kept where they are."""
        gradients = torch.is_grad_enabled() and (leaves.requires_grad or factors.requires_grad)
        size = leaves.shape[1].bit_length()
        tried = (schedule.update, size, gradients, leaves.device, leaves.dtype)
        product = self.product or self._products.get(tried)
        key = (id(schedule), known, wanted is None, leaves.device)
        kept = self._runs.get((*key, product))
        if kept is not None and kept.comes_again:
            return kept.run
        # Rows are sorted by levels where the updates come again, for which it pays.
        again = kept is not None
        rows = self._unrolled(schedule, known, wanted, by_level=again)
        if product is None:
            product = self._products[tried] = faster(rows, self.activations, leaves, factors)
        run = (DenseRun if product == "dense" else SparseRun)(rows, self.activations, leaves.device)
        while len(self._runs) >= _KEPT_RUNS:
            del self._runs[next(iter(self._runs))]
        self._runs[*key, product] = _Kept(schedule, run, again)
        return run

    def _unrolled(
        self,
        schedule: Schedule,
        known: tuple[bool, Drive, bool],
        wanted: Tensor | None,
        by_level: bool,
    ) -> UnrolledRun:
        first_states, drive, bias = known
        if (drive, bias) not in self._wirings:
            self._wirings[drive, bias] = Wiring(**self._facts, drive=drive, bias=bias)
        sequential = schedule.update == "sequential"
        steps = [step.cpu().numpy() for step in schedule.steps]
        if self.activations[0] != self.activations[1]:  # else rows come in the nodes' order
            steps = [self._place[step] if sequential else step[self._order] for step in steps]
        last = self._place if wanted is None else self._place[wanted.cpu().numpy()]
        wiring = self._wirings[drive, bias]
        return unroll(wiring, steps, sequential, last, first_states=first_states, by_level=by_level)


def _columns(part: Tensor, leading: tuple[int, ...]) -> Tensor:
    """``[n, M]`` of ``[..., n, d]``: columns are examples and channels."""
    count, d = part.shape[-2:]
    return part.expand(*leading, count, d).movedim(-2, 0).reshape(count, math.prod(leading) * d)
