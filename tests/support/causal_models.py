"""Every causal architecture of the installed transformers, tiny and with random weights.

One generic shrinking of a configuration's sizes serves nearly all; ``ODD`` holds what some need
beside it.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

VOCAB, WIDTH, HEADS, LAYERS = 64, 32, 4, 3

# Sizes by the names that configurations give them.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "d_model": WIDTH,
    "n_embd": WIDTH,
    "embed_dim": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "embedding_size": WIDTH,
    "intermediate_size": 48,
    "ffn_hidden_size": 48,
    "n_inner": 48,
    "ffn_dim": 48,
    "d_ff": 48,
    "dff": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "mlp_hidden_size": 48,
    "moe_intermediate_size": 16,
    "moe_ffn_hidden_size": 16,
    "expert_ffn_hidden_size": 16,
    "intermediate_size_mlp": 48,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "ffn_config": None,
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": LAYERS,
    "num_attention_heads": HEADS,
    "n_head": HEADS,
    "n_heads": HEADS,
    "num_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_attention_heads": HEADS,
    "attention_heads": HEADS,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "attention_head_dim": 8,
    "kv_channels": 8,
    "rotary_dim": 4,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
    "n_ctx": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "top_k_experts": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 12,
    "v_head_dim": 8,
    "sliding_window": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "state_size": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "lru_width": WIDTH,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "use_cache": False,
    "attention_dropout": 0.0,
}

# What else a type needs: sizes, or a choice that its defaults leave out of a tiny model.
_LATENT = {"num_key_value_heads": HEADS, "head_dim": 4, "qk_rope_head_dim": 4}
_PADDED = {"pad_token_id": 1}
_PLE = {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8}
_HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_DECODER = {"is_decoder": True}  # of an encoder's layers
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_DOTS = {"num_key_value_heads": HEADS, "per_layer_config": {}, "head_dim": 12}
_NARROW = {"hidden_size_global": WIDTH, "intermediate_size": 48}
_INDEXED = {
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "indexer_head_dim": 8,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "ngram_vocab_size_base": 64,
    "hc_lowrank": 8,
    "head_dim": 8,
}
ODD: dict[str, dict[str, Any]] = {
    "blt": {
        "encoder_hash_byte_group_vocab": 16,
        "encoder_config": _NARROW,
        "decoder_config": _NARROW,
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "emu3": {"text_config": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}},
    "gemma4": {"text_config": _PLE | {"pad_token_id": 0}},
    "gemma4_unified": {"text_config": {"pad_token_id": 0, "num_kv_shared_layers": 0}},
    "mllama": {"text_config": {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}},
    "qwen4_exp": {"text_config": _INDEXED},
    "qwen4_exp_text": _INDEXED,
    "xlm": {"pad_token_id": 2},
    "axk1": _LATENT,
    "axk2": _LATENT,
    "camembert": _PADDED | _DECODER,
    "bert": _DECODER,
    "bert-generation": _DECODER,
    "big_bird": _DECODER,
    "electra": _DECODER,
    "ernie": _DECODER,
    "megatron-bert": _DECODER,
    "rembert": _DECODER,
    "roformer": _DECODER,
    "cwm": {"bos_token_id": 1, "eos_token_id": 1},
    "data2vec-text": _PADDED | _DECODER,
    "deepseek_v2": _LATENT | {"num_experts_per_tok": 2},
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT | {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": _DOTS,
    "gemma3n_text": _PLE
    | {"num_kv_shared_layers": 0, "laurel_rank": 8, "intermediate_size": [48] * LAYERS},
    "gemma4_text": _PLE,
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT | {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 4},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    "granite": {
        "residual_multiplier": 0.4,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "attention_multiplier": 0.2,
    },
    "granitemoe": {"residual_multiplier": 0.4, "embedding_multiplier": 3.0},
    "granitemoeshared": {"residual_multiplier": 0.4, "logits_scaling": 2.0},
    "bailing_hybrid": _LATENT | _HYBRID | {"num_mtp_layers": 0, "head_dim": 8},
    "kimi_linear": _LATENT | _HYBRID | {"linear_head_dim": 8, "linear_num_heads": HEADS},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": _LATENT,
    "mamba2": {"num_heads": 2 * HEADS},
    "minicpm3": _LATENT | {"scale_depth": 1.4, "dim_model_base": 16, "scale_emb": 3},
    "modernbert-decoder": dict.fromkeys(
        ("bos_token_id", "cls_token_id", "eos_token_id", "pad_token_id", "sep_token_id"), 1
    ),
    "prophetnet": _PADDED,
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local", "lsh", "local"],
    },
    "roc_bert": _DECODER
    | {"pronunciation_vocab_size": 8, "shape_vocab_size": 8}
    | {"enable_pronunciation": False, "enable_shape": False},
    "roberta": _PADDED | _DECODER,
    "roberta-prelayernorm": _PADDED | _DECODER,
    "stablelm": {"qk_layernorm": True},
    "trocr": {"d_model": WIDTH, "cross_attention_hidden_size": WIDTH},
    "xlm-roberta": _PADDED | _DECODER,
    "xlm-roberta-xl": _PADDED | _DECODER,
    "xmod": _PADDED | _DECODER | {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["hybrid", "mamba", "hybrid"],
        "n_mamba_heads": 2,
        "attention_head_dim": 16,
        "num_key_value_heads": HEADS,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "n_mamba_heads": 8,
        "num_key_value_heads": HEADS,
        "intermediate_size": 48,
    },
    "youtu": _LATENT,
    "zaya": {"num_experts_per_tok": 1},
}

_DRAFTER = "a drafter, which reads the cache of another model and cannot run alone"
_SOUND = (
    "reads codes of sound, and its causal class takes the configuration of a part of its type's"
)
CANNOT_BE_BUILT = {
    "dots3_note": "its defaults name layers that a tiny one has not; dots3_note_text is its half",
    "gemma3n": "its vision tower needs timm, which is not there; gemma3n_text is its language half",
    "gemma4_assistant": _DRAFTER,
    "gemma4_unified_assistant": _DRAFTER,
    "musicgen": _SOUND,
    "musicgen_melody": _SOUND,
}


def model_types() -> dict[str, str]:
    """Every causal type of the installed transformers, and its model's class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names

    return dict(names)


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """The type's configuration, its sizes shrunk; skips where transformers is older than it."""
    import transformers
    from transformers import AutoConfig

    if model_type not in model_types():
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    plain = AutoConfig.for_model(model_type)
    return AutoConfig.for_model(model_type, **{**_shrunk(plain, model_type), **overrides})


def _shrunk(plain: Any, model_type: str) -> dict[str, Any]:
    """The settings that make a configuration tiny, and those inside it."""
    from transformers import PretrainedConfig

    whole = getattr(plain, "num_hidden_layers", None)
    names = {**getattr(plain, "attribute_map", {})}
    given: dict[str, Any] = {}
    for name, size in SIZES.items():
        if size is None and not name.endswith("_token_id"):
            continue
        own = names.get(name, name)
        value = vars(plain).get(own)
        said = value is not None or own in NONE_TOO
        if own in vars(plain) and said and not isinstance(value, (list, dict)):
            given[own] = size
    layer_types = getattr(plain, "layer_types", None)
    settable = "layer_types" in vars(plain)
    if settable and layer_types and len(layer_types) == whole:
        kinds = list(dict.fromkeys(layer_types))
        given["layer_types"] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    for name, inner in vars(plain).items():
        if isinstance(inner, PretrainedConfig):
            given[name] = _shrunk(inner, inner.model_type) | {"model_type": inner.model_type}
    for name, value in ODD.get(model_type, {}).items():
        inside = given.get(name)
        given[name] = inside | value if isinstance(inside, dict) else value
    return given


NONE_TOO = {"head_dim", "num_key_value_heads", "intermediate_size"}


def build(model_type: str, seed: int = 0, dtype: torch.dtype = torch.float32, **given: Any) -> Any:
    """The type's causal model with seeded noise for weights, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(model_type, **given)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if dtype is torch.float64 and any(p.ndim == 3 for p in model.parameters()):
        model.set_experts_implementation("eager")  # the other kernels know no float64
    perturb(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def perturb(model: Any, seed: int) -> None:
    """Moves every parameter by seeded noise, so that no gain is 1 and no bias is 0."""
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        random = torch.randn(parameter.shape, generator=noise)
        if parameter.ndim < 2:
            parameter.add_(0.3 * random)
        else:
            parameter.copy_(1.2 * random / math.sqrt(max(8, parameter.shape[-1])))


def forward(model: Any, length: int = 7) -> torch.Tensor:
    """Logits of a plain run on drawn tokens; raises where the tiny model cannot run."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCAB, (2, length), generator=generator)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert bool(torch.isfinite(logits).all()), "the tiny model gives NaN"
    return logits  # type: ignore[no-any-return]


def build_small(model_type: str, most: int = 8_000_000) -> Any:
    """The tiny model, or why there is none (too many weights, a configuration of its own)."""
    from transformers import AutoModelForCausalLM

    if model_type in CANNOT_BE_BUILT:
        return CANNOT_BE_BUILT[model_type]
    try:
        with torch.device("meta"):
            config = tiny_config(model_type)
            empty: Any = AutoModelForCausalLM.from_config(config)
        count = sum(p.numel() for p in empty.parameters())
        if count > most:
            return f"{count} weights: its configuration is nested"
        model = build(model_type)
        forward(model)
    except Exception as error:  # whatever transformers raises at a configuration
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return model
