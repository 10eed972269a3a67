"""Tiny random causal language models, one per supported family, built without the network.

No parameter is left at the value its constructor gave it: gains are spread around one, biases
around zero (Gemma's gains, which are stored minus one, around zero). A gain or a bias applied in
the wrong place, or not at all, then changes the logits visibly.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import graphprune as gp

WIDTH, HEADS, VOCAB, WINDOW = 16, 4, 61, 3

# family -> (Hugging Face's model_type, settings beside the common ones)
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt_neo": (
        "gpt_neo",
        {
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "intermediate_size": 24,
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "gpt_neox_sequential": (
        "gpt_neox",
        {
            "use_parallel_residual": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "llama": ("llama", {"num_key_value_heads": 2}),
    "llama_mha": ("llama", {"num_key_value_heads": HEADS}),
    "mistral": ("mistral", {"num_key_value_heads": 2, "sliding_window": WINDOW}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 6}),
    "phi3": ("phi3", {"num_key_value_heads": 2}),
    "olmo2": ("olmo2", {"num_key_value_heads": 2}),
    "gemma2": (
        "gemma2",
        {
            "num_key_value_heads": 2,
            "head_dim": 6,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "query_pre_attn_scalar": 5,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
                "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
    ),
}

FAMILIES: list[str] = list(_SETTINGS)

# Hugging Face has no sdpa path for these two: their own attention, or a capped score.
EAGER_ONLY = frozenset({"gpt_neo", "gemma2"})


def rotated(families: list[Any], kinds: list[Any]) -> list[Any]:
    """Every pair as parameters of a test: each family with one kind in turn, the rest slow."""
    return [
        pytest.param(family, kind, marks=[] if (i - j) % len(kinds) == 0 else pytest.mark.slow)
        for i, family in enumerate(families)
        for j, kind in enumerate(kinds)
    ]


def tiny(
    family: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attn: Literal["sdpa", "eager"] = "sdpa",
    **overrides: Any,
) -> PreTrainedModel:
    """A tiny random model of ``family`` in eval mode.

    Args:
        family: one of :data:`FAMILIES`.
        seed: of the weights; the global random state is left alone. The same seed gives the same
            weights, up to rounding, in every dtype.
        dtype: of weights and activations. Note that Hugging Face computes RMS norms, rotary
            angles and the eager softmax in float32 whatever the dtype (see :class:`Float64`).
        attn: the attention implementation; families in :data:`EAGER_ONLY` are always eager.
        overrides: settings of the configuration.
    """
    model_type, settings = _SETTINGS[family]
    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 32,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if model_type == "gpt_neo":
        del common["num_hidden_layers"]
    if model_type not in ("gpt2", "gpt_neo"):
        common |= {
            "intermediate_size": 24,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        }
    config = AutoConfig.for_model(model_type, **(common | settings | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager" if family in EAGER_ONLY else attn
        )
    _perturb(model, seed + zlib.crc32(family.encode()))
    return model.to(dtype).eval()  # type: ignore[no-any-return]


@torch.no_grad()
def _perturb(model: PreTrainedModel, seed: int) -> None:
    """Overwrite every parameter with seeded noise of a size that keeps activations near one."""
    noise = torch.Generator().manual_seed(seed)
    embedding = model.get_input_embeddings().weight
    stored_minus_one = model.config.model_type.startswith("gemma")
    for name, parameter in model.named_parameters():  # tied parameters come once
        shape, unembeds = parameter.shape, parameter is model.get_output_embeddings().weight
        random = torch.randn(shape, generator=noise, dtype=torch.float64)
        if parameter.ndim == 1:
            # One-dimensional weights are the norms' gains.
            gain = name.endswith("weight") and not stored_minus_one
            value = 0.3 * random + (1.0 if gain else 0.0)
        elif parameter is embedding and not unembeds:
            value = random
        elif name.endswith("wpe.weight"):
            value = 0.5 * random
        else:
            # Linear weights are [out, in], Conv1D's [in, out]; tied embeddings act as the former.
            conv1d = model.config.model_type == "gpt2" and not unembeds
            value = 1.3 * random / math.sqrt(shape[0] if conv1d else shape[1])
        parameter.copy_(value)


class Float64(TorchFunctionMode):
    """Inside this context every request for float32 gets float64.

    Hugging Face's norms, rotary angles and softmax are then exact to 1e-14 on a float64 model, so
    that an algebraic identity or a finite difference can be checked tightly. Build the model
    inside as well: the rotary frequencies are stored when it is made.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {
            key: torch.float64 if value is torch.float32 else value
            for key, value in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


# Settings of a family whose graph shall be small, because a test runs it once for each edge.
SMALL: dict[str, dict[str, Any]] = {
    family: {"num_attention_heads": 2}
    | {key: n // 2 for key, n in settings.items() if key == "num_key_value_heads"}
    for family, (_, settings) in _SETTINGS.items()
}


def random_pair(
    model: PreTrainedModel, batch: int = 3, length: int = 9, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random clean and corrupt token ids ``[batch, length]``, different in every position."""
    generator = torch.Generator().manual_seed(seed)
    vocab = int(model.config.vocab_size)
    clean = torch.randint(vocab, (batch, length), generator=generator)
    shift = torch.randint(1, vocab, (batch, length), generator=generator)
    return clean, (clean + shift) % vocab


def language_system(
    family, dtype=torch.float32, *, batch_size=None, positions=None, same=1, small=False, **options
):
    """A tiny model of a family, and pairs of prompts that share their first ``same`` tokens."""
    module = tiny(family, dtype=dtype, **(SMALL[family] if small else {}))
    clean, corrupt = random_pair(module)
    corrupt[:, :same] = clean[:, :same]
    task = gp.Task.from_tensors(
        clean,
        corrupt,
        metric="kl",
        answer=torch.ones(len(clean), 1, dtype=torch.int64),
        positions=positions,
    )
    model = gp.wrap(module, **options)
    return model, task if batch_size is None else gp.Task(
        task.examples, "kl", batch_size=batch_size
    )
