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
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from support.oracle_models import Function, Layer, Model, read

Edge = tuple[str, str]
Values = dict[str, Tensor]
Rounding = Callable[[str, Tensor], Tensor]

ABLATIONS = ("counterfactual", "zero", "mean", "optimal")


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
    view = read(model)
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
    view = read(model)
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
    return _edges(read(model))


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


def _kv(view: Model, layer: int, head: int) -> str:
    return f"a{layer}.{'h' if view.kv_heads == view.heads else 'kv'}{head}"


def _writers(view: Model) -> list[str]:
    names = ["input"]
    for layer in range(len(view.layers)):
        names += [_head(layer, head) for head in range(view.heads)]
        names += [f"m{layer}"]
    return names


def _edges(view: Model) -> list[Edge]:
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
    view: Model,
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
            layer: Layer = layer,
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


def _attention(q: Tensor, k: Tensor, layer: Layer) -> Tensor:
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
