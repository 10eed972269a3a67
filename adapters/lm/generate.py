"""Text from a circuit alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask
from graphprune.core.model import Ablation, MaskedModel
from graphprune.errors import InputError

__all__ = ["generate"]


def _ids(given: Any) -> Tensor:
    """Token ids as a tensor, of what a tokenizer gives too; its one prompt must have no padding."""
    real = None
    if isinstance(given, Mapping):
        if "input_ids" not in given:
            raise InputError(
                f"expected token ids, or a tokenizer's mapping with input_ids; got one with "
                f"{', '.join(map(repr, given)) or 'nothing'}"
            )
        given, real = given["input_ids"], given.get("attention_mask")
    try:
        ids = torch.as_tensor(given)
        marked = None if real is None else torch.as_tensor(real)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"expected the token ids of one prompt, got {type(given).__name__}: {error}. Of a text "
            "tokenizer(text, return_tensors='pt') gives them"
        ) from None
    if marked is not None and not bool((marked == 1).all()):
        raise InputError(
            "the prompt's attention_mask marks padding; generation takes one prompt without it: "
            "tokenizer(text, return_tensors='pt')"
        )
    return ids


def generate(
    model: MaskedModel,
    device: torch.device,
    mask: EdgeMask,
    input_ids: Tensor | Mapping[str, Any],
    *,
    ablation: Ablation | str = "zero",
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    eos_token_id: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Continues one prompt under zero ablation (default) or means pooled over positions.

    Args:
        input_ids: ``[T]`` or ``[1, T]`` int64, or what a tokenizer gives for one prompt.
        ablation: ``"zero"`` or what ``model.mean_ablation(batches)`` gives. There is no corrupted
            text to compare a growing prompt with, so counterfactual ablation is refused, as are
            means kept for each position.
        temperature: 0 takes the best token, more samples by ``seed``.
        eos_token_id: ends the text.

    Returns:
        ``[T + new]`` ids, prompt included.
    """
    if isinstance(ablation, str):
        if ablation != "zero":
            raise InputError(
                f"generation takes ablation='zero' or the means that model.mean_ablation(batches) "
                f"gives, got {ablation!r}"
            )
        ablation = Ablation("zero")
    if ablation.kind == "counterfactual" or ablation.per_position:
        raise InputError(
            f"generation needs zero ablation or means pooled over positions, got {ablation.name}"
        )
    if temperature < 0:
        raise InputError(f"temperature must be at least 0, got {temperature}")
    ids = _ids(input_ids)
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.shape[0] != 1 or not ids.shape[1] or ids.is_floating_point():
        raise InputError(
            f"expected the token ids of one prompt, [T] or [1, T] with T >= 1, got "
            f"{list(ids.shape)} {ids.dtype}"
        )
    ids = ids.to(device)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(max_new_tokens):
        batch = Batch({"input_ids": ids}, None, 1)
        logits = model.run(batch, mask, model.reference(batch, ablation))[0].float().cpu()
        if temperature > 0:
            chances = (logits / temperature).softmax(-1)
            chosen = torch.multinomial(chances, 1, generator=generator)
        else:
            chosen = logits.argmax(-1, keepdim=True)
        ids = torch.cat([ids, chosen[None].to(ids)], 1)
        if eos_token_id is not None and int(chosen) == eos_token_id:
            break
    return ids[0]
