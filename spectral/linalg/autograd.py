"""How much a weighted graph rotates, as a differentiable function of its weights.

Plain autograd through ``torch.linalg.eigvals`` raises on defective blocks and gives gradients of
1e23 near them. Here eigenvalues come by component, those without a derivative count as constant,
and a badly conditioned one counts only as far as ``limit`` allows.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError

from .laplacians import Degrees, Laplacian, operator
from .measures import measure_named
from .names import known
from .sensitivity import contract, slopes
from .spectra import DENSE_LIMIT, Solver
from .wiring import Wiring, wiring

__all__ = ["rotation"]


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, given: Wiring, solver: Solver, name: str, limit: float
    ) -> Tensor:
        measure = measure_named(name)
        now = given.reweighted(weights)
        found = solver.decompose(now, vectors=True)
        if ctx.needs_input_grad[0]:
            slope = slopes(solver.operator, now, contract(now, found, measure, limit=limit))
            ctx.slope = torch.from_numpy(slope[: now.num_edges].copy()).to(weights)
        return weights.new_tensor(measure.value(found.values))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return grad * ctx.slope, None, None, None, None


def rotation(
    graph: ComputationalGraph | Wiring | Any,
    weights: Tensor,
    laplacian: Laplacian = "out",
    *,
    measure: Literal["sum", "max"] = "sum",
    degrees: Degrees | None = None,
    limit: float = 1e4,
    dense_limit: int = DENSE_LIMIT,
) -> Tensor:
    """The sum (or the largest) of ``|Im lambda|``, differentiable once in ``weights [E]``.

    Args:
        graph, laplacian, degrees, dense_limit: as for :func:`~graphprune.spectral.spectrum`.
        measure: ``"sum"`` over all eigenvalues, or the ``"max"``.
        limit: the condition ``1 / |u^H v|`` above which an eigenvalue's part of the gradient is
            scaled down to what it would be there.

    Returns:
        A scalar of the weights' dtype. Gradients are finite for finite weights.

    Raises as :func:`~graphprune.spectral.spectrum`.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> w = torch.ones(3, dtype=torch.float64, requires_grad=True)
        >>> turning = rotation(ring, w)
        >>> turning.backward()
        >>> turning.item(), w.grad
        (1.732..., tensor([0.5774, 0.5774, 0.5774], dtype=torch.float64))
    """
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise InputError("weights must be a float tensor [E]; a list has no gradient")
    known(measure, Literal["sum", "max"], "measure")
    given = wiring(graph)
    solver = Solver(operator(laplacian, degrees), dense_limit)
    out: Tensor = _Rotation.apply(weights, given, solver, measure, limit)  # type: ignore[no-untyped-call]
    return out
