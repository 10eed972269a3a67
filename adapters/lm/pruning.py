"""A circuit's module beside the user's model: checked, tried, and runnable on the same inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from graphprune.batch import Batch
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.model import Ablation
from graphprune.pruned import Pruned

from .building import pruned_module
from .inputs import read_inputs
from .surgery import quiet

if TYPE_CHECKING:
    from .model import LanguageModel

__all__ = ["pruned"]

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}


def pruned(model: LanguageModel, values: Tensor, ablation: Ablation) -> Pruned:
    """See :meth:`LanguageModel.pruned`; ``values [E]`` are the mask's."""
    arch = model.arch
    between = (values != 0) & (values != 1)
    if bool(between.any()):
        number = int(torch.nonzero(between)[0])
        raise InputError(
            f"a module of its own keeps an edge or cuts it; {int(between.sum())} of the mask's "
            f"values lie between 0 and 1 ({model.graph.edge_names[number]} has "
            f"{float(values[number]):.3g}); round the mask first"
        )
    with torch.no_grad(), quiet(model.module):
        module = pruned_module(arch, model.layout, values != 0, ablation)
    causal: Any = model.module
    vocabulary = cast(Tensor, arch.embedding.weight).shape[0]

    def original(ids: Tensor) -> Tensor:
        with quiet(causal):
            logits: Tensor = causal(input_ids=ids, use_cache=False).logits
        return logits

    def draw(batch: int, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(vocabulary, (batch, length), generator=generator).to(arch.device)

    def answers(batch: Batch) -> Tensor:
        inputs = read_inputs(arch, batch)
        logits = module(inputs.clean)
        rows: Tensor = logits.flatten(0, 1)[inputs.answers]
        return rows.view(*inputs.shape, -1)

    def size(batch: Batch) -> tuple[int, int]:
        found = read_inputs(arch, batch).clean.shape
        return found[0], found[1]

    made = Pruned(module, causal, original, draw, answers, size, 0.0, module.longest, module.exact)
    return replace(made, gap=_gap(made, model, values, ablation))


@torch.no_grad()
def _gap(made: Pruned, model: LanguageModel, values: Tensor, ablation: Ablation) -> float:
    ids = made.draw(2, made.length(9))
    places = torch.arange(ids.shape[1], device=ids.device).expand(2, -1)
    batch = Batch({"input_ids": ids}, None, 2, positions=places)
    want = model.run(batch, values, model.reference(batch, ablation)).double()
    gap = float((made.answers(batch).double() - want).abs().max())
    size = 1 + float(want.abs().max())
    if not gap <= _TOLERANCE.get(model.arch.dtype, 0.2) * size:
        raise UnsupportedModelError(
            f"the circuit's module differs by {gap:.3g} from the masked run on drawn tokens "
            f"(logits up to {size:.3g}), so it is not given away"
        )
    return gap
