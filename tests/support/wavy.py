"""Small transformers whose weights are written by a formula, so that any machine has the same ones.

They are what numbers of other projects' code were computed on (``tests/golden``): no draw of random
numbers, which differ between versions, stands between the two.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

VOCAB = 13
CLEAN = [[1, 4, 2, 7, 5], [3, 4, 8, 0, 11], [9, 12, 2, 2, 6]]
CORRUPT = [[1, 6, 2, 7, 5], [3, 10, 8, 1, 11], [0, 12, 5, 2, 6]]
ANSWERS, DISTRACTORS = [3, 8, 1], [10, 2, 5]


def wave(shape: Any, number: int, scale: float, centre: float = 0.0) -> Tensor:
    """The ``number``-th tensor, float64: sines of squares (of multiples they would have rank 2)."""
    places = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    angle = places.square() * (1.0 + 0.37 * number) + number
    return (centre + scale * torch.sin(angle)).reshape(shape)


@torch.no_grad()
def wavy(model: Any) -> Any:
    """``model`` in float64 and eval mode with such weights: gains near one, biases near zero."""
    model = model.double().eval()
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        gain = parameter.ndim == 1 and name.endswith("weight")
        scale = 0.3 if parameter.ndim == 1 else 0.7 / math.sqrt(parameter.shape[-1]) * 2
        parameter.copy_(wave(parameter.shape, number, scale, 1.0 if gain else 0.0))
    return model


def wavy_gpt2() -> Any:
    """Two layers, two heads, a table of positions, layer norms, weights tied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=8, n_embd=8, n_layer=2, n_head=2, n_inner=12,
        bos_token_id=None, eos_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    return wavy(GPT2LMHeadModel(config))


def wavy_llama() -> Any:
    """Two layers, two heads, rotary positions, RMS norms, a gated MLP."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=8,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        attn_implementation="eager",
    )  # fmt: skip
    return wavy(LlamaForCausalLM(config))
