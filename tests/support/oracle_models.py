"""Where the oracle finds a model's weights: each family of Hugging Face read by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """One block: weights are ``[out, in]`` as ``nn.Linear`` stores them, None where absent."""

    attn_norm: Function | None  # before q, k and v
    mlp_norm: Function | None  # before the MLP
    attn_post_norm: tuple[Tensor, float] | None  # RMS gain and epsilon after the attention output
    mlp_post_norm: Function | None
    mlp: Function
    w_q: Tensor
    w_k: Tensor
    w_v: Tensor
    w_o: Tensor
    b_q: Tensor | None
    b_k: Tensor | None
    b_v: Tensor | None
    b_o: Tensor | None
    q_norm: Function | None
    k_norm: Function | None
    qk_norm_spans_heads: bool
    rope: Mapping[str, Any] | None  # the rotary settings of this layer's type
    scale: float
    softcap: float | None
    window: int | None  # a query sees itself and the window - 1 positions before it
    float32_scores: bool  # q @ k in float32 whatever the dtype
    float32_softmax: bool


@dataclass(frozen=True)
class Model:
    heads: int
    kv_heads: int
    head_dim: int
    parallel: bool  # the MLP does not see its own layer's attention
    embed: Function
    positions: Tensor | None
    layers: list[Layer]
    final_norm: Function
    unembed: Function
    final_softcap: float | None


def read(model: PreTrainedModel) -> Model:
    kind = model.config.model_type
    if kind in ("gpt2", "gpt_neo"):
        return _gpt(model)
    if kind == "gpt_neox":
        return _neox(model)
    if kind in ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "gemma2", "gemma3_text"):
        return _llama_like(model)
    raise NotImplementedError(f"the oracle does not know {kind!r}")


def _gpt(model: Any) -> Model:
    """GPT-2 (fused transposed qkv) and GPT-Neo (no q, k, v bias, scores not scaled)."""
    config, body = model.config, model.transformer
    heads, width = config.num_attention_heads, config.hidden_size
    layers = []
    for index, block in enumerate(body.h):
        common: dict[str, Any] = {
            "attn_norm": block.ln_1,
            "mlp_norm": block.ln_2,
            "attn_post_norm": None,
            "mlp_post_norm": None,
            "mlp": block.mlp,
            "q_norm": None,
            "k_norm": None,
            "qk_norm_spans_heads": False,
            "rope": None,
            "softcap": None,
            "float32_softmax": False,
        }
        if config.model_type == "gpt2":
            scale = (width // heads) ** -0.5 if config.scale_attn_weights else 1.0
            if config.scale_attn_by_inverse_layer_idx:
                scale /= index + 1
            w_q, w_k, w_v = block.attn.c_attn.weight.T.split(width)
            b_q, b_k, b_v = block.attn.c_attn.bias.split(width)
            layer = Layer(
                w_q=w_q,
                w_k=w_k,
                w_v=w_v,
                w_o=block.attn.c_proj.weight.T,
                b_q=b_q,
                b_k=b_k,
                b_v=b_v,
                b_o=block.attn.c_proj.bias,
                scale=scale,
                window=None,
                float32_scores=False,
                **common,
            )
        else:
            attention = block.attn.attention
            local = config.attention_layers[index] == "local"
            layer = Layer(
                w_q=attention.q_proj.weight,
                w_k=attention.k_proj.weight,
                w_v=attention.v_proj.weight,
                w_o=attention.out_proj.weight,
                b_q=None,
                b_k=None,
                b_v=None,
                b_o=attention.out_proj.bias,
                scale=1.0,
                window=config.window_size if local else None,
                float32_scores=True,
                **common,
            )
        layers.append(layer)
    return Model(
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        parallel=False,
        embed=body.wte,
        positions=body.wpe.weight,
        layers=layers,
        final_norm=body.ln_f,
        unembed=model.lm_head,
        final_softcap=None,
    )


def _neox(model: Any) -> Model:
    """GPT-NeoX: qkv rows ordered head by head, each head's q, then k, then v."""
    config, body = model.config, model.gpt_neox
    heads, width = config.num_attention_heads, config.hidden_size
    dim = width // heads
    layers = []
    for block in body.layers:
        fused = block.attention.query_key_value
        weight, bias = fused.weight, fused.bias

        def rows(part: int, whole: Tensor) -> Tensor:
            starts = [(3 * head + part) * dim for head in range(heads)]
            return torch.cat([whole[start : start + dim] for start in starts])

        layers.append(
            Layer(
                attn_norm=block.input_layernorm,
                mlp_norm=block.post_attention_layernorm,
                attn_post_norm=None,
                mlp_post_norm=None,
                mlp=block.mlp,
                w_q=rows(0, weight),
                w_k=rows(1, weight),
                w_v=rows(2, weight),
                w_o=block.attention.dense.weight,
                b_q=None if bias is None else rows(0, bias),
                b_k=None if bias is None else rows(1, bias),
                b_v=None if bias is None else rows(2, bias),
                b_o=block.attention.dense.bias,
                q_norm=None,
                k_norm=None,
                qk_norm_spans_heads=False,
                rope=config.rope_parameters,
                scale=dim**-0.5,
                softcap=None,
                window=None,
                float32_scores=False,
                float32_softmax=config._attn_implementation == "eager",
            )
        )
    return Model(
        heads=heads,
        kv_heads=heads,
        head_dim=dim,
        parallel=config.use_parallel_residual,
        embed=body.embed_in,
        positions=None,
        layers=layers,
        final_norm=body.final_layer_norm,
        unembed=model.get_output_embeddings(),
        final_softcap=None,
    )


def _llama_like(model: Any) -> Model:
    """Llama's descendants; what each changes stands in the branches."""
    config, body = model.config, model.model
    kind = config.model_type
    gemma = kind.startswith("gemma")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = []
    for index, block in enumerate(body.layers):
        attention = block.self_attn

        if kind == "phi3":
            sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
            w_q, w_k, w_v = attention.qkv_proj.weight.split(sizes)
            b_q = b_k = b_v = None
        else:
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            w_q, w_k, w_v = (part.weight for part in parts)
            b_q, b_k, b_v = (part.bias for part in parts)

        attn_norm, mlp_norm = None, None
        attn_post_norm, mlp_post_norm = None, None
        if kind == "olmo2" or gemma:  # `post_attention_layernorm` is a true post-norm here
            norm = block.post_attention_layernorm
            if gemma:  # the gain is stored minus one
                attn_post_norm = (1 + norm.weight, config.rms_norm_eps)
            else:
                attn_post_norm = (norm.weight, config.rms_norm_eps)
            mlp_post_norm = block.post_feedforward_layernorm
        else:  # and the MLP's pre-norm here
            mlp_norm = block.post_attention_layernorm
        if gemma:
            mlp_norm = block.pre_feedforward_layernorm
        if kind != "olmo2":
            attn_norm = block.input_layernorm

        if kind in ("mistral", "phi3"):  # every layer
            window = config.sliding_window
        elif kind in ("qwen2", "qwen3", "gemma2", "gemma3_text"):  # by the layer's type
            sliding = config.layer_types[index] == "sliding_attention"
            window = config.sliding_window if sliding else None
        else:
            window = None

        rope = config.rope_parameters
        if kind == "gemma3_text":
            rope = rope[config.layer_types[index]]
        has_qk_norm = kind in ("qwen3", "olmo2", "gemma3_text")
        layers.append(
            Layer(
                attn_norm=attn_norm,
                mlp_norm=mlp_norm,
                attn_post_norm=attn_post_norm,
                mlp_post_norm=mlp_post_norm,
                mlp=block.mlp,
                w_q=w_q,
                w_k=w_k,
                w_v=w_v,
                w_o=attention.o_proj.weight,
                b_q=b_q,
                b_k=b_k,
                b_v=b_v,
                b_o=attention.o_proj.bias,
                q_norm=attention.q_norm if has_qk_norm else None,
                k_norm=attention.k_norm if has_qk_norm else None,
                qk_norm_spans_heads=kind == "olmo2",
                rope=rope,
                scale=(config.query_pre_attn_scalar if gemma else dim) ** -0.5,
                softcap=config.attn_logit_softcapping if kind == "gemma2" else None,
                window=window,
                float32_scores=False,
                float32_softmax=config._attn_implementation == "eager",
            )
        )
    return Model(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        parallel=False,
        embed=body.embed_tokens,
        positions=None,
        layers=layers,
        final_norm=body.norm,
        unembed=model.lm_head,
        final_softcap=config.final_logit_softcapping if gemma else None,
    )
