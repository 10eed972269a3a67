"""The cost of a pass, measured on the pass itself: seconds, FLOPs, bytes of weights read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graphprune.capabilities import module_of
from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask
from graphprune.core.model import MaskedModel, Reference
from graphprune.util.quantities import synchronise


class _WeightsRead(TorchDispatchMode):
    """Counts the bytes of the module's parameters that operations take as arguments, each once."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self._seen: dict[tuple[int, int], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            for arg in args:
                if isinstance(arg, Tensor) and (arg.untyped_storage().data_ptr() in self._storages):
                    key = (arg.data_ptr(), arg.numel())
                    self._seen[key] = arg.numel() * arg.element_size()
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self._seen.values())


def measure(
    model: MaskedModel,
    batch: Batch,
    mask: EdgeMask,
    reference: Reference,
    spent: dict[str, float],
) -> None:
    """Adds ``seconds_``, ``flops_`` and ``bytes_`` of ``circuit`` and ``full`` to ``spent``.

    The circuit's pass has its ablated values at hand, as in an evaluation; ``bytes_`` is the most
    that one batch reads of the weights of the model's module, where it runs one.
    """
    from torch.utils.flop_counter import FlopCounterMode

    module = module_of(model)
    jobs: dict[str, Callable[[], Tensor]] = {
        "circuit": lambda: model.run(batch, mask, reference),
        "full": lambda: _full(model, batch, reference),
    }
    for side, job in jobs.items():
        synchronise(reference.full.device)
        start = time.perf_counter()
        job()
        synchronise(reference.full.device)
        seconds = time.perf_counter() - start
        with FlopCounterMode(display=False) as counter:
            job()
        spent[f"seconds_{side}"] = spent.get(f"seconds_{side}", 0.0) + seconds
        spent[f"flops_{side}"] = spent.get(f"flops_{side}", 0.0) + counter.get_total_flops()
        if module is None:
            continue
        with _WeightsRead(module) as read:
            job()
        spent[f"bytes_{side}"] = max(spent.get(f"bytes_{side}", 0.0), float(read.total))


def _full(model: MaskedModel, batch: Batch, reference: Reference) -> Tensor:
    """The full model's outputs, by a pass of their own.

    A reference that is made whole at once would count the ablated pass too.
    """
    if type(reference).full is Reference.full:
        return model.run(batch, EdgeMask.full(model.graph), reference)
    return model.reference(batch, reference.ablation).full
