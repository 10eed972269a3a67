"""Parts of the oracle of encoders: what a stack is, and some kinds of stacks as it walks them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Values = dict[str, Tensor]
Function = Callable[[Tensor], Tensor]


@dataclass
class Branch:
    """Attention (weights ``q, k, v, o`` as ``(weight, bias)``), or an MLP (``mlp``)."""

    letter: str
    norm: Function
    post: bool
    q: Any = None
    k: Any = None
    v: Any = None
    o: Any = None
    scale: float = 1.0
    bias: Callable[[int, int, int], Tensor] | None = None  # head, queries, keys -> scores to add
    rotate: Function | None = None
    distances: Callable[[int, Tensor, Tensor], Tensor] | None = None  # head, q, k -> scores to add
    causal: bool = False
    mlp: Function | None = None


@dataclass
class Side:
    """One stack, as the oracle walks it."""

    prefix: str
    heads: int
    embedded: Tensor
    unmaskable: Tensor
    first_norm: Function | None
    layers: list[list[Branch]]
    final_norm: Function | None = None
    visible: Tensor = field(default_factory=lambda: torch.ones(0))


def _maps(module: Any, names: str) -> list[Any]:
    return [(m.weight, m.bias) for m in (module.get_submodule(n) for n in names.split())]


def attend(letter: str, module: Any, names: str, norm: Any, post: bool, **more: Any) -> Branch:
    q, k, v, o = _maps(module, names)
    return Branch(letter, norm, post, q, k, v, o, **more)


def image_stream(tower: Any, patches: Any, front: Tensor, positions: Tensor, pixels: Tensor) -> Any:
    own = patches(pixels[None])[0].flatten(1).T
    padded = torch.cat([own.new_zeros(len(front), own.shape[1]), own])
    before = torch.cat([front, torch.zeros_like(own)])
    return padded, before + positions


def bucket_of(distance: int, causal: bool, buckets: int = 8, most: int = 128) -> int:
    """Raffel et al. 2020: half of the buckets count single steps, the rest grow with the log."""
    out = 0
    if causal:
        distance = max(-distance, 0)
    else:
        buckets //= 2
        out = buckets if distance > 0 else 0
        distance = abs(distance)
    exact = buckets // 2
    if distance < exact:
        return out + distance
    large = exact + int(math.log(distance / exact) / math.log(most / exact) * (buckets - exact))
    return out + min(large, buckets - 1)


def image_sides(kind: str, module: Any, pixels: Tensor) -> tuple[list[Side], Function]:
    tower = module.vision_model if kind == "siglip" else module.dinov2
    e = tower.embeddings
    if kind == "siglip":
        none = torch.zeros(0, 16)
        own, rest = image_stream(
            tower, e.patch_embedding, none, e.position_embedding.weight, pixels
        )
        layers = [
            [
                attend("a", x.self_attn, "q_proj k_proj v_proj out_proj", x.layer_norm1, False,
                           scale=8**-0.5),
                Branch("m", x.layer_norm2, False, mlp=x.mlp),
            ]
            for x in tower.encoder.layers
        ]  # fmt: skip
        head = lambda x: module.classifier(tower.post_layernorm(x).mean(0))  # noqa: E731
        return [Side("", 2, own, rest, None, layers)], head
    own, rest = image_stream(tower, e.patch_embeddings.projection, e.cls_token[0],
                       e.position_embeddings[0], pixels)  # fmt: skip
    layers = []
    for x in tower.encoder.layer:
        attention = attend("a", x.attention, "q_proj k_proj v_proj o_proj", x.norm1, False,
                               scale=8**-0.5)  # fmt: skip
        weight, bias = attention.o
        attention.o = (x.layer_scale1.lambda1[:, None] * weight, x.layer_scale1.lambda1 * bias)
        mlp = lambda h, x=x: x.layer_scale2.lambda1 * x.mlp(h)  # noqa: E731
        layers.append([attention, Branch("m", x.norm2, False, mlp=mlp)])

    def classes(x: Tensor) -> Tensor:
        x = tower.layernorm(x)
        return module.classifier(torch.cat([x[0], x[1:].mean(0)]))

    return [Side("", 2, own, rest, None, layers)], classes


def encoder_sides(kind: str, name: str, module: Any, ids: Tensor) -> tuple[list[Side], Function]:
    tower = getattr(module, kind)
    e = tower.embeddings
    rest = torch.zeros(len(ids), e.word_embeddings.weight.shape[1]).double()
    if kind == "mpnet":  # counted from behind the padding's id, which is 1 here whatever is said
        real = (ids != 1).long()
        rest = rest + e.position_embeddings.weight[real.cumsum(0) * real + 1]
    elif kind != "deberta":
        rest = rest + e.position_embeddings.weight[: len(ids)] + e.token_type_embeddings.weight[0]
    first = e.LayerNorm
    if kind == "albert":
        layer = tower.encoder.albert_layer_groups[0].albert_layers[0]
        first = lambda x: tower.encoder.embedding_hidden_mapping_in(e.LayerNorm(x))  # noqa: E731
        own = attend("a", layer.attention, "query key value dense", layer.attention.LayerNorm,
                         True, scale=8**-0.5)  # fmt: skip
        mlp = lambda h: layer.ffn_output(layer.activation(layer.ffn(h)))  # noqa: E731
        last = Branch("m", layer.full_layer_layer_norm, True, mlp=mlp)
        layers = [[own, last]] * 3
        return [Side("", 2, e.word_embeddings.weight[ids], rest, first, layers)], module.predictions
    if hasattr(tower, "embeddings_project"):
        first = lambda x: tower.embeddings_project(e.LayerNorm(x))  # noqa: E731
    layers = []
    for x in tower.encoder.layer:
        norm = x.attention.LayerNorm if kind == "mpnet" else x.attention.output.LayerNorm
        if kind == "mpnet":
            table = tower.encoder.relative_attention_bias.weight

            def far(head: int, queries: int, keys: int, table: Tensor = table) -> Tensor:
                rows = [[table[bucket_of(j - i, False, 32), head] for j in range(keys)]
                        for i in range(queries)]  # fmt: skip
                return torch.stack([torch.stack(row) for row in rows])

            own = attend("a", x.attention.attn, "q k v o", norm, True, scale=8**-0.5, bias=far)
        elif kind == "electra":
            own = attend("a", x.attention, "self.query self.key self.value output.dense", norm,
                             True, scale=8**-0.5)  # fmt: skip
        else:
            names = "self.query_proj self.key_proj self.value_proj output.dense"
            own = attend("a", x.attention, names, norm, True, scale=24**-0.5,
                             distances=_disentangled(tower.encoder, x.attention.self))  # fmt: skip
        mlp = lambda h, x=x: x.output.dense(x.intermediate(h))  # noqa: E731
        layers.append([own, Branch("m", x.output.LayerNorm, True, mlp=mlp)])

    def head(x: Tensor) -> Tensor:
        if kind == "electra":
            if name.endswith("classes"):
                return module.classifier(x[None])[0]
            return module.generator_lm_head(module.generator_predictions(x))
        if kind == "mpnet":
            return module.lm_head(x)
        if name.endswith("classes"):
            return module.classifier(module.pooler(x[None])[0])
        return module.cls(x)

    return [Side("", 2, e.word_embeddings.weight[ids], rest, first, layers)], head


def _disentangled(encoder: Any, attention: Any) -> Callable[[int, Tensor, Tensor], Tensor]:
    """He et al. 2021: a query with the distance's key, and a key with the distance's query."""
    table = encoder.rel_embeddings.weight
    if "layer_norm" in encoder.norm_rel_ebd:
        table = encoder.LayerNorm(table)
    shared = attention.share_att_key
    key = attention.key_proj if shared else attention.pos_key_proj
    query = attention.query_proj if shared else attention.pos_query_proj
    span, buckets = attention.pos_ebd_size, attention.position_buckets
    most = attention.max_relative_positions

    def place(distance: int) -> int:
        middle = buckets // 2
        if buckets > 0 and abs(distance) > middle:
            far = math.log(abs(distance) / middle) / math.log((most - 1) / middle) * (middle - 1)
            distance = int(math.copysign(math.ceil(far) + middle, distance))
        return min(max(distance + span, 0), 2 * span - 1)

    def scores(head: int, q: Tensor, k: Tensor) -> Tensor:
        keys, queries = (
            part(table[: 2 * span]).unflatten(-1, (2, -1))[:, head] for part in (key, query)
        )
        at = torch.tensor([[place(i - j) for j in range(len(k))] for i in range(len(q))])
        # The model's own second index: the key's row, at the distance from key to query, negated.
        return (q[:, None] * keys[at]).sum(-1) + (k[None] * queries[at]).sum(-1)

    return scores
