"""Some prompts with the model's and the circuit's answers, for the page."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphprune.core.ablation import AblationLike, resolve_ablation, said_or_own
from graphprune.core.mask import mask_of, require_same_graph
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import InputError


def prompt_answers(
    model: MaskedModel,
    task: Task,
    circuit: object,
    tokenizer: Any,
    *,
    n: int = 5,
    top: int = 3,
    ablation: AblationLike | None = None,
) -> list[dict[str, Any]]:
    """``n`` prompts of a task with the likeliest next tokens of both sides.

    Args:
        model: a language model.
        task: prompts as token ids, each answered at one position.
        circuit: a circuit, a result or a mask.
        tokenizer: whose ``decode`` makes text of token ids.
        n: how many prompts.
        top: how many tokens of each side.
        ablation: ``None`` takes the one that the circuit was found under, else counterfactual.

    Returns:
        Dicts with ``prompt`` and ``answer`` (text), ``model`` and ``circuit`` (``(token,
        probability)`` pairs, the likeliest first), as :func:`to_html` takes them.

    Example:
        >>> edges = gp.EAP().score(lm, prompts).top(50)
        >>> row = prompt_answers(lm, prompts, edges, tokenizer, n=1, top=1)[0]
        >>> row["prompt"], list(row)
        ('When Grace and Jessica went to the school, Grace gave a letter to', ['prompt', 'answer',
        'model', 'circuit'])
    """
    mask = mask_of(circuit)
    require_same_graph(model.graph, mask.graph, "the model and the circuit")
    if n < 1 or top < 1:
        raise InputError(f"n and top must be at least 1, got {n} and {top}")
    chosen = resolve_ablation(model, task, said_or_own(ablation, circuit))
    rows: list[dict[str, Any]] = []
    for batch in task.batches(n):
        if not isinstance(batch.clean, dict) or "input_ids" not in batch.clean:
            raise InputError("prompts with answers need a task of token ids, as of language models")
        with torch.no_grad():
            reference = model.reference(batch, chosen)
            sides = [reference.full, model.run(batch, mask.values, reference)]
        ids = batch.clean["input_ids"]
        present = batch.clean.get("attention_mask", torch.ones_like(ids)).bool()
        for i in range(min(batch.size, n - len(rows))):
            answers = [] if batch.answer is None else batch.answer[i][batch.answer[i] >= 0].tolist()
            rows.append(
                {
                    "prompt": tokenizer.decode(ids[i][present[i]].tolist()),
                    "answer": " or ".join(repr(tokenizer.decode([a])) for a in answers),
                    **{
                        name: _likeliest(side[i], tokenizer, top)
                        for name, side in zip(("model", "circuit"), sides, strict=True)
                    },
                }
            )
        if len(rows) >= n:
            break
    return rows


def _likeliest(logits: Tensor, tokenizer: Any, top: int) -> list[tuple[str, float]]:
    """Tokens and probabilities at the (first) answer position, the likeliest first."""
    row = logits if logits.ndim == 1 else logits[0]
    shares, tokens = row.float().softmax(-1).topk(min(top, row.shape[-1]))
    return [
        (repr(tokenizer.decode([token])), share)
        for token, share in zip(tokens.tolist(), shares.tolist(), strict=True)
    ]
