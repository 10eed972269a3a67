"""A circuit's module beside the user's model: checked, tried, and runnable on the same inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.model import Ablation, MaskedModel
from graphprune.core.pruned import Pruned, tolerance
from graphprune.errors import InputError, UnsupportedModelError

from ..describe.architecture import Architecture
from ..describe.embeddings import max_positions
from ..describe.layout import EdgeLayout
from ..describe.linear_maps import require_plain
from ..describe.module_copies import quiet
from ..describe.norms import largest_gap
from ..passes.inputs import Inputs, read_inputs
from ..passes.values import Values
from .building import pruned_module
from .module import PrunedModel

__all__ = ["pruned"]


def pruned(
    model: MaskedModel,
    arch: Architecture,
    layout: EdgeLayout,
    values: Tensor,
    ablation: Ablation,
    logits_to_keep: int,
) -> Pruned:
    """See :meth:`LanguageModel.pruned`; ``values [E]`` are the mask's."""
    between = (values != 0) & (values != 1)
    if bool(between.any()):
        number = int(torch.nonzero(between)[0])
        raise InputError(
            f"a module of its own keeps an edge or cuts it; {int(between.sum())} of the mask's "
            f"values lie between 0 and 1 ({model.graph.edge_names[number]} has "
            f"{float(values[number]):.3g}); round the mask first"
        )
    require_plain(arch.model, arch.blocks, "a module of its own holds plain weights")
    last = _last(logits_to_keep, ablation, max_positions(arch))
    with torch.no_grad(), arch.running():
        module = pruned_module(arch, layout, values != 0, ablation, last)
    causal: Any = arch.model

    def original(ids: Tensor) -> Tensor:
        logits: Tensor = causal(
            input_ids=ids, use_cache=False, logits_to_keep=logits_to_keep
        ).logits
        return logits

    def answers(batch: Batch) -> Tensor:
        inputs = read_inputs(arch, batch)
        if last is None:
            logits = module(inputs.clean)
            rows: Tensor = logits.flatten(0, 1)[inputs.answers]
        else:
            rows = _last_rows(module, inputs)
        return rows.view(*inputs.shape, -1)

    def size(batch: Batch) -> tuple[int, int]:
        shape = read_inputs(arch, batch).clean.shape
        return shape[0], shape[1]

    result = Pruned(
        module,
        causal,
        original,
        arch.drawn_ids,
        answers,
        size,
        quiet=lambda: quiet(causal),
        longest=module.longest,
        shortest=last or 1,
        exact=module.exact,
        options={"logits_to_keep": logits_to_keep},
    )
    return replace(result, gap=_gap(result, model, arch.dtype, values, ablation, last))


def _last(logits_to_keep: int, ablation: Ablation, longest: int | None) -> int | None:
    if (
        isinstance(logits_to_keep, bool)
        or not isinstance(logits_to_keep, int)
        or logits_to_keep < 0
    ):
        raise InputError(
            "logits_to_keep must be the number of last positions to give logits at (0: all), got "
            f"{logits_to_keep!r}"
        )
    most = longest
    if isinstance(ablation.values, Values) and ablation.per_position:
        most = ablation.values.mlps[0].shape[1]
    if most is not None and logits_to_keep > most:
        raise InputError(f"logits_to_keep={logits_to_keep}, but there are {most} positions at most")
    return logits_to_keep or None


def _last_rows(module: PrunedModel, inputs: Inputs) -> Tensor:
    """``[answers, V]``: prompts are cut behind each answer, which nothing before it reads."""
    length, kept = inputs.clean.shape[1], module.last or 0
    examples, positions = inputs.answers // length, inputs.answers % length
    rows: dict[int, Tensor] = {}
    for position in torch.unique(positions).tolist():
        which = torch.nonzero(positions == position)[:, 0]
        stop = max(position + 1, kept) if module.exact is None else module.exact
        at = position - stop + kept
        if at < 0:
            raise InputError(
                f"the task reads answers at position {position}; the module gives logits at the "
                f"last {kept} of {stop} positions"
            )
        logits = module(inputs.clean[examples[which], :stop])[:, at]
        rows.update(zip(which.tolist(), logits, strict=True))
    return torch.stack([rows[i] for i in range(len(positions))])


@torch.no_grad()
def _gap(
    result: Pruned,
    model: MaskedModel,
    dtype: torch.dtype,
    values: Tensor,
    ablation: Ablation,
    last: int | None,
) -> float:
    ids = result.draw(2, result.length(9))
    length = ids.shape[1]
    positions = torch.arange(length - (last or length), length, device=ids.device).expand(2, -1)
    batch = Batch({"input_ids": ids}, None, 2, positions=positions)
    want = model.run(batch, values, model.reference(batch, ablation)).double()
    logits: Tensor = result.module(ids)
    gap = largest_gap(logits, want)
    size = 1 + float(want.abs().max())
    if not gap <= tolerance(dtype) * size:
        raise UnsupportedModelError(
            f"the circuit's module differs by {gap:.3g} from the masked run on drawn tokens "
            f"(logits up to {size:.3g}), so it is not given away"
        )
    return gap
