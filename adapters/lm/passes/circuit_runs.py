"""Running a circuit alone: only its nodes, only its edges, everything else from the ablated run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graphprune.errors import InputError

from ..describe.layout import Layout, Plan, computed_share, sparse_plan
from .masked import masked_run
from .reader_inputs import HeadCores
from .sparse import Base, Fixed, SparseRun
from .values import LMReference

__all__ = ["circuit_run", "compiled", "run"]

# Up to this share of the layers' multiplications a run of the circuit alone took 0.82 to 0.96 of a
# whole masked pass; above it up to 1.29 on GPT-2 small's shape (16 x 16 tokens, one thread).
_PAYS = 0.8


def _plan(layout: Layout, reference: LMReference, mask: Tensor) -> Plan:
    flat = mask.detach().reshape(-1, mask.shape[-1]).cpu()
    return sparse_plan(layout, flat, quiescent=reference.exact_counterfactual)


def _share(layout: Layout, reference: LMReference, plan: Plan) -> float:
    block = reference.arch.blocks[0]
    mlp = sum(p.numel() for p in block.mlp.parameters())
    batch, length, _ = reference.glue.entry.shape
    asked = reference.inputs.answers.unique().numel() / (batch * (length - reference.start))
    return computed_share(layout, plan, block.head_dim * reference.arch.width, mlp, asked)


def circuit_run(
    layout: Layout, reference: LMReference, mask: Tensor, cores: list[HeadCores]
) -> Tensor:
    """Outputs ``[K, B, ..., V]`` under ``mask [K, E]``, one circuit after another.

    Differentiable in the mask values that are not 0; an edge at 0 is absent and has no gradient.
    """
    base = Base(layout, reference, cores)
    asked = mask.requires_grad and torch.is_grad_enabled()
    outputs = []
    for row in mask:
        plan = _plan(layout, reference, row)
        if asked:  # an absent edge has no gradient, though others of its product have
            row = row * (row.detach() != 0)
        run = SparseRun(base, plan, row, {}, Fixed(), keeps_graph=asked)
        outputs.append(run.run()[0])
    found = torch.stack(outputs)
    # Where no edge leads anywhere the outputs are constants, whose gradient is 0, not an error.
    return found + 0 * mask.sum().to(found) if asked and not found.requires_grad else found


def compiled(
    layout: Layout, reference: LMReference, mask: Tensor, cores: list[HeadCores]
) -> Callable[[], Tensor]:
    """A function that runs the circuit ``mask [E]``; what does not change is kept between calls."""
    base = Base(layout, reference, cores)
    plan = _plan(layout, reference, mask)
    held: dict[int, Tensor] = {}
    fixed = Fixed()

    @torch.no_grad()
    def run() -> Tensor:
        reference.require_same_weights()
        with reference.arch.running():
            return SparseRun(base, plan, mask, held, fixed).run()[0]

    return run


def _refuse_constants(reference: LMReference) -> None:
    constants = reference.constants
    if constants is not None and constants.requires_grad and torch.is_grad_enabled():
        raise InputError(
            "sparse=True gives no gradient of learned ablation constants; leave it out, or run "
            "under torch.no_grad()"
        )


def run(
    layout: Layout,
    reference: LMReference,
    mask: Tensor,
    cores: list[HeadCores],
    sparse: bool | None,
) -> Tensor:
    """Outputs under ``mask [K, E]`` or ``[K, B, E]``: of the circuit alone, or by a whole pass.

    ``sparse=None`` runs the circuit alone where it needs at most 80 % of the layers'
    multiplications and no gradient is wanted.
    """
    if sparse is None:
        constants = reference.constants
        asked = mask.requires_grad or (constants is not None and constants.requires_grad)
        if mask.ndim == 2 and len(mask) == 1 and not (asked and torch.is_grad_enabled()):
            sparse = _share(layout, reference, _plan(layout, reference, mask)) < _PAYS
    if sparse:
        _refuse_constants(reference)
        return circuit_run(layout, reference, mask, cores)
    return masked_run(layout, reference, mask)
