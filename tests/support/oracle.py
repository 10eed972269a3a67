"""A slow oracle for masked runs of a causal language model, written from the definition.

Reader r reads, at every position,

    x_r = unmaskable(place) + sum_u [ m(u, r) y_u + (1 - m(u, r)) ytilde_u ]

over every writer u before it, and puts x_r through its own norm and its own rows of the weights.
One example at a time, one reader at a time, one edge at a time; attention, rotary angles and
windows are written out here and take only weights from the Hugging Face modules. Norm modules,
MLP modules and the embedding are called as they are.

Writers: `input` (token embedding, with the family's scale), `a{l}.h{h}` (query head), `m{l}`.
Readers: `a{l}.h{h}<q>`; `a{l}.kv{j}<k>` and `<v>` of every native key/value head, called
`a{l}.h{j}<k>` and `<v>` where there are as many as query heads; `m{l}`; `logits`.
Unmaskable: position embeddings and the attention output's bias.

A head's message is its share of the attention output, W_O[h] z_h. Under a post-norm (Gemma-2/3,
OLMo-2) it is that share times the norm's gain and the RMS scale of the layer's actual attention
output in this run, all heads together. A full-width q or k norm (OLMo-2) likewise spans all heads
of the layer, each computed from what its own reader reads.

Sign: mask 1 passes the message y_u of this run, 0 replaces it by ytilde_u.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Edge = tuple[str, str]
Values = dict[str, Tensor]
Function = Callable[[Tensor], Tensor]
Rounding = Callable[[str, Tensor], Tensor]

ABLATIONS = ("counterfactual", "zero", "mean", "optimal")


@dataclass(frozen=True)
class _Layer:
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
class _Model:
    heads: int
    kv_heads: int
    head_dim: int
    parallel: bool  # the MLP does not see its own layer's attention
    embed: Function
    positions: Tensor | None
    layers: list[_Layer]
    final_norm: Function
    unembed: Function
    final_softcap: float | None


def oracle_logits(
    model: PreTrainedModel,
    clean_ids: Tensor,
    mask: Mapping[Edge, float | Tensor],
    ablation: str = "counterfactual",
    corrupt_ids: Tensor | None = None,
    means: Mapping[str, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    rounding: Rounding | None = None,
) -> Tensor:
    """Logits ``[batch, pos, vocab]`` of the masked run, differentiable in the mask's tensors.

    Args:
        model: a causal language model of a known family.
        clean_ids: token ids ``[batch, pos]``.
        mask: (writer, reader) -> value; edges left out are 1, unknown edges are an error.
        ablation: "counterfactual" takes the writers' values in the plain run on ``corrupt_ids``;
            "zero" takes zeros; "mean" and "optimal" take ``means``.
        corrupt_ids: as ``clean_ids``, for the counterfactual ablation.
        means: writer -> tensor broadcastable to ``[pos, d_model]``, for every writer.
        attention_mask: ``[batch, pos]`` with 1 on tokens, for right-padded batches (clean and
            corrupt alike). Logits at padding are 0 and mean nothing.
    """
    view = _view(model)
    if unknown := set(mask) - set(_edges(view)):
        raise KeyError(f"no such edges in this model: {sorted(unknown)[:5]}")
    if ablation not in ABLATIONS:
        raise ValueError(f"ablation is one of {ABLATIONS}, got {ablation!r}")
    rows = []
    for example, length in enumerate(_lengths(clean_ids, attention_mask)):
        ids = clean_ids[example, :length]
        shape = (length, model.config.hidden_size)
        ablated: Values
        if ablation == "counterfactual":
            assert corrupt_ids is not None, "the counterfactual ablation needs corrupt_ids"
            ablated, _ = _run(view, corrupt_ids[example, :length], None, None, rounding)
        elif ablation == "zero":
            zero = view.embed(ids).new_zeros(shape)
            ablated = dict.fromkeys(_writers(view), zero)
        else:
            assert means is not None, f"the {ablation} ablation needs means"
            ablated = {
                name: means[name].expand(clean_ids.shape[1], shape[1])[:length]
                for name in _writers(view)
            }
        _, logits = _run(view, ids, mask, ablated, rounding)
        rows.append(_pad(logits, clean_ids.shape[1]))
    return torch.stack(rows)


def oracle_writer_values(
    model: PreTrainedModel, ids: Tensor, attention_mask: Tensor | None = None
) -> Values:
    """Every writer's message ``[batch, pos, d_model]`` in the plain run; 0 at padding."""
    view = _view(model)
    per_example = [
        _run(view, ids[example, :length], mask=None, ablated=None)[0]
        for example, length in enumerate(_lengths(ids, attention_mask))
    ]
    return {
        name: torch.stack([_pad(values[name], ids.shape[1]) for values in per_example])
        for name in _writers(view)
    }


def oracle_edges(model: PreTrainedModel) -> list[Edge]:
    """Every (writer, reader), readers in the order they are computed, writers likewise."""
    return _edges(_view(model))


def _lengths(ids: Tensor, attention_mask: Tensor | None) -> list[int]:
    if attention_mask is None:
        return [ids.shape[1]] * ids.shape[0]
    lengths = [int(row.sum()) for row in attention_mask]
    for row, length in zip(attention_mask, lengths, strict=True):
        assert bool((row[:length] == 1).all()), "the oracle takes right-padded batches only"
    return lengths


def _pad(values: Tensor, length: int) -> Tensor:
    return torch.cat([values, values.new_zeros(length - values.shape[0], values.shape[1])])


# Names and edges.


def _head(layer: int, head: int) -> str:
    return f"a{layer}.h{head}"


def _kv(view: _Model, layer: int, head: int) -> str:
    return f"a{layer}.{'h' if view.kv_heads == view.heads else 'kv'}{head}"


def _writers(view: _Model) -> list[str]:
    names = ["input"]
    for layer in range(len(view.layers)):
        names += [_head(layer, head) for head in range(view.heads)]
        names += [f"m{layer}"]
    return names


def _edges(view: _Model) -> list[Edge]:
    edges: list[Edge] = []
    before = ["input"]
    for layer in range(len(view.layers)):
        heads = [_head(layer, head) for head in range(view.heads)]
        readers = [f"{name}<q>" for name in heads]
        readers += [f"{_kv(view, layer, head)}<k>" for head in range(view.kv_heads)]
        readers += [f"{_kv(view, layer, head)}<v>" for head in range(view.kv_heads)]
        edges += [(writer, reader) for reader in readers for writer in before]
        mlp_sees = before if view.parallel else before + heads
        edges += [(writer, f"m{layer}") for writer in mlp_sees]
        before = [*before, *heads, f"m{layer}"]
    return edges + [(writer, "logits") for writer in before]


# One run of one example.


def _run(
    view: _Model,
    ids: Tensor,
    mask: Mapping[Edge, float | Tensor] | None,
    ablated: Values | None,
    rounding: Rounding | None = None,
) -> tuple[Values, Tensor]:
    """Writers' messages and logits ``[pos, vocab]``; a plain run where ``mask`` is None."""
    length, dim = ids.shape[0], view.head_dim
    values: Values = {"input": view.embed(ids)}
    unmaskable = torch.zeros_like(values["input"])
    if view.positions is not None:
        unmaskable = unmaskable + view.positions[:length]

    def read(reader: str, writers: list[str]) -> Tensor:
        x = unmaskable
        for writer in writers:
            if mask is None or ablated is None:
                x = x + values[writer]
            else:
                m = mask.get((writer, reader), 1.0)
                x = x + m * values[writer] + (1 - m) * ablated[writer]
        return x

    before = ["input"]
    for index, layer in enumerate(view.layers):

        def project(
            reader: str,
            weight: Tensor,
            bias: Tensor | None,
            head: int,
            layer: _Layer = layer,
            before: list[str] = before,
        ) -> Tensor:
            x = read(reader, before)
            if layer.attn_norm is not None:
                x = layer.attn_norm(x)
            if rounding is not None:
                x = rounding(reader, x)
            rows = slice(head * dim, (head + 1) * dim)
            y = x @ weight[rows].T
            return y if bias is None else y + bias[rows]

        q = [
            project(f"{_head(index, head)}<q>", layer.w_q, layer.b_q, head)
            for head in range(view.heads)
        ]
        k = [
            project(f"{_kv(view, index, head)}<k>", layer.w_k, layer.b_k, head)
            for head in range(view.kv_heads)
        ]
        v = [
            project(f"{_kv(view, index, head)}<v>", layer.w_v, layer.b_v, head)
            for head in range(view.kv_heads)
        ]
        q = _norm_heads(q, layer.q_norm, layer.qk_norm_spans_heads)
        k = _norm_heads(k, layer.k_norm, layer.qk_norm_spans_heads)
        if layer.rope is not None:
            q = [_rotate(x, layer.rope, dim) for x in q]
            k = [_rotate(x, layer.rope, dim) for x in k]

        shares = []
        for head in range(view.heads):
            group = head // (view.heads // view.kv_heads)
            z = _attention(q[head], k[group], layer) @ v[group]
            if rounding is not None:
                z = rounding(_head(index, head), z)
            shares.append(z @ layer.w_o[:, head * dim : (head + 1) * dim].T)
        bias = torch.zeros_like(unmaskable) if layer.b_o is None else layer.b_o
        if layer.attn_post_norm is not None:
            gain, epsilon = layer.attn_post_norm
            output = bias + sum(shares)
            square = output.float().pow(2).mean(-1, keepdim=True)
            factor = torch.rsqrt(square + epsilon).to(output.dtype) * gain
            shares = [share * factor for share in shares]
            bias = bias * factor
        heads = [_head(index, head) for head in range(view.heads)]
        values |= dict(zip(heads, shares, strict=True))

        if not view.parallel:
            unmaskable = unmaskable + bias
        x = read(f"m{index}", before if view.parallel else before + heads)
        if layer.mlp_norm is not None:
            x = layer.mlp_norm(x)
        y = layer.mlp(x)
        if layer.mlp_post_norm is not None:
            y = layer.mlp_post_norm(y)
        values[f"m{index}"] = y
        if view.parallel:
            unmaskable = unmaskable + bias
        before = [*before, *heads, f"m{index}"]

    logits = view.unembed(view.final_norm(read("logits", before)))
    if view.final_softcap is not None:
        logits = view.final_softcap * torch.tanh(logits / view.final_softcap)
    return values, logits


def _norm_heads(heads: list[Tensor], norm: Function | None, spans_heads: bool) -> list[Tensor]:
    if norm is None:
        return heads
    if spans_heads:
        return list(norm(torch.cat(heads, dim=-1)).chunk(len(heads), dim=-1))
    return [norm(x) for x in heads]


def _rotate(x: Tensor, rope: Mapping[str, Any], head_dim: int) -> Tensor:
    """Rotate the pairs (i, i + n/2) of the first n dimensions by position times frequency i.

    Angles are float32, as every family here has them.
    """
    n = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    half = n // 2
    theta, kind = rope["rope_theta"], rope["rope_type"]
    frequency = theta ** -(torch.arange(half, dtype=torch.float32) * 2 / n)
    if kind == "linear":
        frequency = frequency / rope["factor"]
    elif kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = keep * frequency + (1 - keep) * frequency / rope["factor"]
    else:
        assert kind == "default", f"the oracle does not know rotary type {kind!r}"
    angle = torch.arange(x.shape[0], dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, rest = x[:, :half], x[:, half:n], x[:, n:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _attention(q: Tensor, k: Tensor, layer: _Layer) -> Tensor:
    """Attention pattern ``[query pos, key pos]`` of one head."""
    dtype, length = q.dtype, q.shape[0]
    if layer.float32_scores:
        scores = ((q.float() @ k.float().T) * layer.scale).to(dtype)
    else:
        scores = (q @ k.T) * layer.scale
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    visible = distance >= 0
    if layer.window is not None:
        visible = visible & (distance < layer.window)
    scores = scores.masked_fill(~visible, -math.inf)
    if layer.float32_softmax:
        scores = scores.float()
    return scores.softmax(dim=-1).to(dtype)


# Where each family keeps its parts.


def _view(model: PreTrainedModel) -> _Model:
    kind = model.config.model_type
    if kind in ("gpt2", "gpt_neo"):
        return _gpt(model)
    if kind == "gpt_neox":
        return _neox(model)
    if kind in ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "gemma2", "gemma3_text"):
        return _llama_like(model)
    raise NotImplementedError(f"the oracle does not know {kind!r}")


def _gpt(model: Any) -> _Model:
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
            layer = _Layer(
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
            layer = _Layer(
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
    return _Model(
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


def _neox(model: Any) -> _Model:
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
            _Layer(
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
    return _Model(
        heads=heads,
        kv_heads=heads,
        head_dim=dim,
        parallel=config.use_parallel_residual,
        embed=body.embed_in,
        positions=None,
        layers=layers,
        final_norm=body.final_layer_norm,
        unembed=model.lm_head,
        final_softcap=None,
    )


def _llama_like(model: Any) -> _Model:
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
            _Layer(
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
    return _Model(
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
