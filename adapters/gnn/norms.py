"""PyG's LayerNorm over a whole graph, where copies of one graph stand side by side.

Without a batch vector it divides by ``std + eps``, with one by ``sqrt(var + eps)``: two functions,
which differ by about eps. Data of one graph is normalised by the first, and so are its copies
here, each by its own mean and deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import LayerNorm

__all__ = ["bare_norms", "one_by_one"]


@contextmanager
def bare_norms(module: nn.Module) -> Iterator[set[str]]:
    """Paths of the norms over whole graphs that are called without a batch vector meanwhile."""
    bare: set[str] = set()

    def note(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (args[1] if len(args) > 1 else kwargs.get("batch")) is None:
            bare.add(path)

    with ExitStack() as handles:
        for path, norm in module.named_modules():
            if type(norm) is LayerNorm and norm.mode == "graph" and "forward" not in vars(norm):
                hook = partial(note, path)
                handles.enter_context(norm.register_forward_pre_hook(hook, with_kwargs=True))
        yield bare


@contextmanager
def one_by_one(module: nn.Module, paths: Collection[str]) -> Iterator[None]:
    """Meanwhile these norms treat each graph of a batch as they treat a graph alone."""
    norms = [module.get_submodule(path) for path in paths]
    try:
        for norm in norms:
            norm.forward = _each(norm)
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _each(norm: Any) -> Callable[..., Tensor]:
    def forward(x: Tensor, batch: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        if batch is None:
            whole: Tensor = type(norm).forward(norm, x)
            return whole
        count = int(batch.max()) + 1 if batch_size is None else batch_size
        numbers = torch.bincount(batch, minlength=count).clamp(min=1).to(x) * x.shape[-1]

        def mean(values: Tensor) -> Tensor:
            sums = values.new_zeros(count).index_add(0, batch, values.sum(-1))
            return sums / numbers

        x = x - mean(x)[batch, None]
        variance = mean(x * x)
        varies = variance > 0  # as torch's own deviation, which has no gradient at 0
        std = torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0)
        out: Tensor = x / (std + norm.eps)[batch, None]
        if norm.weight is not None and norm.bias is not None:
            out = out * norm.weight + norm.bias
        return out

    return forward
