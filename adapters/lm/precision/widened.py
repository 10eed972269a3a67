"""A model in float64 over weights that stay as they are: a layer's are widened while it computes.

A copy of all weights in float64 would take four times a bfloat16 model's memory beside the model.
Here the structure alone is copied; :class:`WeightLoader` puts a layer's weights in float64 in
place and takes them away again. Two parts may be larger than a layer, so less than all of each
is widened: of the token embedding the rows that are looked up, of the output map some features
after the other. Every number is that of the copy.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..describe.module_copies import LinearInPieces, part
from ..describe.offloading import computes_in

__all__ = ["widened_copy", "widened_module"]


def widened_copy(model: nn.Module) -> nn.Module:
    """A copy whose weights are all in float64."""
    return _with_eager_experts(copy.deepcopy(model).double())


def _with_eager_experts(model: Any) -> nn.Module:
    """The model itself; mixtures of experts compute one by one, as their kernel has no float64."""
    if any(p.ndim == 3 for p in model.parameters()):
        model.set_experts_implementation("eager")
    found: nn.Module = model
    return found


def widened_module(model: nn.Module, embedding: str) -> nn.Module:
    """A twin that computes in float64 and shares every parameter with ``model``.

    It must be run by layers, inside their ``loaded()``; ``embedding`` is the token table's path.
    """
    shared = {id(parameter): parameter for parameter in model.parameters()}
    twin = copy.deepcopy(model, shared)
    for module in twin.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.double()
    table = part(twin, embedding)
    if isinstance(table, nn.Embedding) and table.max_norm is None:
        twin.set_submodule(embedding, _RowsInFloat64(table))
    causal = getattr(twin, "get_output_embeddings", None)
    head = None if causal is None else causal()
    if type(head) is nn.Linear:
        for name in [name for name, module in twin.named_modules() if module is head]:
            twin.set_submodule(name, LinearInPieces(head))
    by_themselves = {head, *(m for m in twin.modules() if isinstance(m, _RowsInFloat64))}
    for module in twin.modules():
        if module not in by_themselves:
            computes_in(module, torch.float64)
    return _with_eager_experts(twin)


class _RowsInFloat64(nn.Module):
    """An embedding that widens the rows it looks up; what it does beside that is its own class's.

    Example:
        >>> inner = nn.Embedding(9, 2, dtype=torch.bfloat16)
        >>> bool((_RowsInFloat64(inner)(torch.tensor([7, 2])) == inner.weight[[7, 2]]).all())
        True
    """

    def __init__(self, inner: nn.Embedding) -> None:
        super().__init__()
        self.weight = inner.weight
        self.inner = copy.copy(inner)
        self.inner.padding_idx = None  # a row's number in the whole table
        self.inner._parameters = {}

    def forward(self, ids: Tensor) -> Tensor:
        """``[..., D]`` in float64."""
        rows, numbers = ids.unique(return_inverse=True)
        wide = nn.Parameter(self.weight.detach()[rows].double(), requires_grad=False)
        self.inner._parameters["weight"] = wide
        try:
            out: Tensor = self.inner(numbers)
        finally:
            self.inner._parameters.clear()
        return out
