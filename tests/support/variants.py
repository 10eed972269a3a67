"""Families of language models, and settings that change where or how something is added."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from .tiny import EAGER_ONLY, FAMILIES, tiny

# Settings of the same families that change where or how something is added.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "gpt2_layer_scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2_no_scale": ("gpt2", {"scale_attn_weights": False}),
    "gpt2_untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt_neox_no_bias": ("gpt_neox", {"attention_bias": False}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_one_kv": ("llama", {"num_key_value_heads": 1}),
    "llama3_rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama_linear_rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
    ),
    "mistral_no_window": ("mistral", {"sliding_window": None}),
    "qwen2_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "phi3_window": ("phi3", {"sliding_window": 3}),
    "phi3_partial": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "olmo2_mha": ("olmo2", {"num_key_value_heads": 4}),
    "olmo2_biases": ("olmo2", {"attention_bias": True}),
}
Attention = Literal["sdpa", "eager"]
CASES = [
    pytest.param(name, attn, id=f"{name}-{attn}")
    for name, (family, _) in VARIANTS.items()
    for attn in ("sdpa", "eager")
    if attn == "eager" or (name in FAMILIES and family not in EAGER_ONLY)
]
FAMILY_CASES = [case for case in CASES if case.values[0] in FAMILIES]


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-11, rtol=0.0)


def build(name: str, attn: Attention = "eager", dtype: torch.dtype = torch.float64) -> Any:
    family, overrides = VARIANTS[name]
    return tiny(family, dtype=dtype, attn=attn, **overrides)
