"""A slow oracle for masked runs of encoders and encoder-decoders, written from the definition.

One example, one reader and one edge at a time. Reader r walks along its stack: it begins with what
no edge carries (positions, token types, a class token) and passes, for each group j of writers that
stand before it (the embedding, a layer's heads, its MLP),

    x = norm_j( x + bias_j + sum_u [ m(u, r) y_u + (1 - m(u, r)) ytilde_u ] )

where norm_j is the norm behind the group (post-norm), or nothing. Then comes the norm before the
reader, if there is one. Keys and values of cross-attention walk along the encoder to its end.

Attention, rotary angles, windows and relative positions are written out here and take only weights
from the Hugging Face modules; norms, MLPs and heads behind the last layer are called as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from support.residual_kinds import (
    Branch,
    Function,
    Side,
    Values,
    attend,
    bucket_of,
    encoder_sides,
    image_sides,
    image_stream,
)  # fmt: skip


def _sides(name: str, module: Any, inputs: Values) -> tuple[list[Side], Function]:
    """The stacks of one example and the function from the end of the last to the logits."""
    kind = name.split("-")[0]
    config = module.config
    if kind in ("vit", "deit"):
        tower = getattr(module, kind)
        e = tower.embeddings
        front = [e.cls_token[0]] + ([e.distillation_token[0]] if kind == "deit" else [])
        own, rest = image_stream(
            tower, e.patch_embeddings.projection, torch.cat(front), e.position_embeddings[0],
            inputs["pixel_values"],
        )  # fmt: skip
        names, scale = "q_proj k_proj v_proj o_proj", (16 / 2) ** -0.5
        layers = [
            [
                attend("a", x.attention, names, x.layernorm_before, False, scale=scale),
                Branch("m", x.layernorm_after, False, mlp=x.mlp),
            ]
            for x in tower.layers
        ]

        def classes(x: Tensor) -> Tensor:
            x = tower.layernorm(x)
            if name == "deit-distilled":
                return (module.cls_classifier(x[0]) + module.distillation_classifier(x[1])) / 2
            return module.classifier(x[0])

        return [Side("", 2, own, rest, None, layers)], classes
    if kind == "clip":
        tower = module.vision_model
        e = tower.embeddings
        own, rest = image_stream(
            tower, e.patch_embedding, e.class_embedding[None], e.position_embedding.weight,
            inputs["pixel_values"],
        )  # fmt: skip
        layers = [
            [
                attend("a", x.self_attn, "q_proj k_proj v_proj out_proj", x.layer_norm1, False,
                           scale=8**-0.5),
                Branch("m", x.layer_norm2, False, mlp=x.mlp),
            ]
            for x in tower.encoder.layers
        ]  # fmt: skip

        def classes(x: Tensor) -> Tensor:
            if name == "clip-classes":
                return module.classifier(x[1:].mean(0))
            return module.visual_projection(tower.post_layernorm(x[0]))

        return [Side("", 2, own, rest, tower.pre_layrnorm, layers)], classes
    if kind in ("siglip", "dinov2"):
        return image_sides(kind, module, inputs["pixel_values"])
    ids = inputs["input_ids"]
    if kind in ("albert", "mpnet", "deberta", "electra"):
        return encoder_sides(kind, name, module, ids)
    if kind in ("bert", "roberta", "xlm", "camembert", "distilbert"):
        tower = getattr(module, {"bert": "bert", "distilbert": "distilbert"}.get(kind, "roberta"))
        e = tower.embeddings
        at = torch.arange(len(ids))
        if hasattr(tower, "encoder") and kind != "bert":  # counted from behind the padding's id
            real = (ids != config.pad_token_id).long()
            at = real.cumsum(0) * real + config.pad_token_id
        rest = e.position_embeddings.weight[at]
        if kind != "distilbert":
            rest = rest + e.token_type_embeddings.weight[0]
        layers = []
        for x in tower.transformer.layer if kind == "distilbert" else tower.encoder.layer:
            if kind == "distilbert":
                own = attend("a", x.attention, "q_lin k_lin v_lin out_lin", x.sa_layer_norm,
                                 True, scale=8**-0.5)  # fmt: skip
                layers.append([own, Branch("m", x.output_layer_norm, True, mlp=x.ffn)])
                continue
            names = "self.query self.key self.value output.dense"
            own = attend("a", x.attention, names, x.attention.output.LayerNorm, True,
                             scale=8**-0.5)  # fmt: skip
            mlp = lambda h, x=x: x.output.dense(x.intermediate(h))  # noqa: E731
            layers.append([own, Branch("m", x.output.LayerNorm, True, mlp=mlp)])

        def head(x: Tensor) -> Tensor:
            if kind == "distilbert":
                if name.endswith("classes"):
                    return module.classifier(module.pre_classifier(x[0]).relu())
                x = module.activation(module.vocab_transform(x))
                return module.vocab_projector(module.vocab_layer_norm(x))
            if name == "bert-classes":
                return module.classifier(tower.pooler(x[None])[0])
            if name == "roberta-classes":
                return module.classifier(x[None])[0]
            if name == "bert-tokens":
                return module.classifier(x)
            return module.cls(x) if kind == "bert" else module.lm_head(x)

        own = e.word_embeddings.weight[ids]
        return [Side("", 2, own, rest, e.LayerNorm, layers)], head
    if kind == "modernbert":
        tower = module.model
        own = tower.embeddings.tok_embeddings.weight[ids]
        layers = []
        for index, x in enumerate(tower.layers):
            weight, bias = x.attn.Wqkv.weight, x.attn.Wqkv.bias
            q, k, v = (
                (weight[i * 16 : (i + 1) * 16], None if bias is None else bias[i * 16 :][:16])
                for i in range(3)
            )
            # Every second layer sees the whole text, the others two tokens to either side.
            local = index % 2 == 1

            def near(head: int, queries: int, keys: int, local: bool = local) -> Tensor:
                far = (torch.arange(queries)[:, None] - torch.arange(keys)).abs() > 2
                return torch.where(far & local, -math.inf, 0.0).double()

            theta = config.rope_parameters["sliding_attention" if local else "full_attention"]
            out = x.attn.Wo
            layers.append(
                [
                    Branch("a", x.attn_norm, False, q, k, v, (out.weight, out.bias), scale=8**-0.5,
                           bias=near, rotate=_rotation(theta["rope_theta"])),
                    Branch("m", x.mlp_norm, False, mlp=x.mlp),
                ]
            )  # fmt: skip

        def head(x: Tensor) -> Tensor:
            x = tower.final_norm(x)
            if name.endswith("classes"):
                return module.classifier(module.head(x[0]))
            return module.decoder(module.head(x))

        rest = torch.zeros_like(own)
        return [Side("", 2, own, rest, tower.embeddings.norm, layers)], head
    told = inputs.get("decoder_input_ids")
    if told is None:  # BART shifts the text itself
        told = torch.cat([torch.tensor([config.decoder_start_token_id]), ids[:-1]])
    if kind in ("t5", "mt5"):
        sides = [
            _t5_side(config, module.encoder, ids, "e."),
            _t5_side(config, module.decoder, told, "d."),
        ]

        def head(x: Tensor) -> Tensor:
            x = module.decoder.final_layer_norm(x)
            if getattr(config, "scale_decoder_outputs", False):
                x = x * config.d_model**-0.5
            return module.lm_head(x)

        return sides, head
    sides = [
        _bart_side(module.model.encoder, ids, "e.", 2),
        _bart_side(module.model.decoder, told, "d.", 4),
    ]
    if name.endswith("classes"):
        last = int((ids == config.eos_token_id).nonzero().max())
        return sides, lambda x: module.classification_head(x[last])
    end = getattr(module.model.decoder, "layer_norm", lambda x: x)
    bias = module.final_logits_bias[0] if hasattr(module, "final_logits_bias") else 0.0
    return sides, lambda x: module.lm_head(end(x)) + bias


def _rotation(theta: float) -> Function:
    def rotate(x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        frequency = 1.0 / (
            theta ** (torch.arange(0, x.shape[1], 2, dtype=torch.float) / x.shape[1])
        )
        angle = torch.arange(len(x)).float()[:, None] * frequency
        cos, sin = angle.cos().to(x), angle.sin().to(x)
        a, b = x[:, :half].float(), x[:, half:].float()  # as the module itself has them
        return torch.cat([a * cos - b * sin, b * cos + a * sin], 1).to(x.dtype)

    return rotate


def _t5_side(config: Any, stack: Any, ids: Tensor, prefix: str) -> Side:
    decodes = prefix == "d."
    table = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight

    def distances(head: int, queries: int, keys: int) -> Tensor:
        rows = [
            [table[bucket_of(j - i, decodes), head] for j in range(keys)] for i in range(queries)
        ]
        return torch.stack([torch.stack(row) for row in rows])

    layers = []
    for block in stack.block:
        first, last = block.layer[0], block.layer[-1]
        own = attend("a", first.SelfAttention, "q k v o", first.layer_norm, False,
                         bias=distances, causal=decodes)  # fmt: skip
        branches = [own]
        if decodes:
            cross = block.layer[1]
            branches.append(attend("c", cross.EncDecAttention, "q k v o", cross.layer_norm, False))
        layers.append([*branches, Branch("m", last.layer_norm, False, mlp=last.DenseReluDense)])
    own = stack.embed_tokens.weight[ids]
    return Side(prefix, 2, own, torch.zeros_like(own), None, layers, stack.final_layer_norm)


def _bart_side(stack: Any, ids: Tensor, prefix: str, heads: int) -> Side:
    kind = type(stack).__name__
    end = getattr(stack, "layer_norm", None)
    post = end is None  # norms stand before the branches, and one at the end; or behind them
    names, decodes, scale = "q_proj k_proj v_proj out_proj", prefix == "d.", (16 / heads) ** -0.5
    layers = []
    for x in stack.layers:
        own = attend("a", x.self_attn, names, x.self_attn_layer_norm, post, scale=scale,
                         causal=decodes)  # fmt: skip
        branches = [own]
        if decodes:
            branches.append(
                attend("c", x.encoder_attn, names, x.encoder_attn_layer_norm, post, scale=scale)
            )
        mlp = lambda h, x=x: x.fc2(x.activation_fn(x.fc1(h)))  # noqa: E731
        layers.append([*branches, Branch("m", x.final_layer_norm, post, mlp=mlp)])
    own = stack.embed_tokens.weight[ids]
    own = own * 4 if stack.config.scale_embedding else own  # the root of the width
    at = torch.arange(len(ids))
    if kind.startswith(("Bart", "MBart")):
        at = at + 2
    if kind.startswith("M2M"):  # counted from behind the padding's id, 0, as there is none inside
        rest = stack.embed_positions.weights[torch.where(ids == 0, 0, (ids != 0).cumsum(0))]
    else:
        rest = stack.embed_positions.weight[at]
    first = getattr(stack, "layernorm_embedding", None)
    return Side(prefix, heads, own, rest, first, layers, end)


def oracle(
    name: str,
    module: Any,
    inputs: Values,
    mask: Mapping[str, Tensor] | None = None,
    ablated: Values | None = None,
) -> tuple[Tensor, Values]:
    """Logits of one example (``[T, V]``, or ``[C]``) and what each node sent.

    Args:
        name: the model's, as in ``residual_models``.
        module: the Hugging Face module.
        inputs: of one example, without the batch axis.
        mask: edge name -> value; a plain run where ``None``.
        ablated: node -> what stands in for its message.
    """
    sides, head = _sides(name, module, inputs)
    values: Values = {}
    walks: list[list[tuple[list[str], Tensor | float, Function | None]]] = [[] for _ in sides]

    def read(number: int, reader: str, norm: Function | None) -> Tensor:
        target, _, port = reader.partition("<")
        port = f"<{port}" if port else ""
        x = sides[number].unmaskable
        for writers, bias, behind in walks[number]:
            x = x + bias
            for u in writers:
                if mask is None:
                    x = x + values[u]
                else:
                    assert ablated is not None
                    m = mask[f"{u}->{target}{port}"]
                    x = x + m * values[u] + (1 - m) * ablated[u]
            x = x if behind is None else behind(x)
        return x if norm is None else norm(x)

    seen = inputs.get("attention_mask")
    for number, side in enumerate(sides):
        values[f"{side.prefix}input"] = side.embedded
        walks[number].append(([f"{side.prefix}input"], 0.0, side.first_norm))
        for layer, branches in enumerate(side.layers):
            for branch in branches:
                before, behind = (None, branch.norm) if branch.post else (branch.norm, None)
                node = f"{side.prefix}{branch.letter}{layer}"
                if branch.mlp is not None:
                    values[node] = branch.mlp(read(number, node, before))
                    walks[number].append(([node], 0.0, behind))
                    continue
                heads = [f"{node}.h{h}" for h in range(side.heads)]
                cross = branch.letter == "c"
                told = (0, sides[0].final_norm) if cross else (number, before)
                # The encoder's padding is hidden from everyone who looks at the encoder.
                hidden = None if seen is None or (number and not cross) else seen == 0
                for h, head_name in enumerate(heads):
                    q = _rows(read(number, f"{head_name}<q>", before), branch.q, h, side.heads)
                    k = _rows(read(told[0], f"{head_name}<k>", told[1]), branch.k, h, side.heads)
                    v = _rows(read(told[0], f"{head_name}<v>", told[1]), branch.v, h, side.heads)
                    pattern = _pattern(branch, h, q, k, hidden)
                    weight = branch.o[0].unflatten(1, (side.heads, -1))[:, h]
                    values[head_name] = pattern @ v @ weight.T
                bias = 0.0 if branch.o[1] is None else branch.o[1]
                walks[number].append((heads, bias, behind))
    return head(read(len(sides) - 1, "logits", None)), values


def _rows(x: Tensor, part: Any, head: int, heads: int) -> Tensor:
    weight, bias = part
    out = x @ weight.unflatten(0, (heads, -1))[head].T
    return out if bias is None else out + bias.unflatten(0, (heads, -1))[head]


def _pattern(branch: Branch, head: int, q: Tensor, k: Tensor, hidden: Tensor | None) -> Tensor:
    if branch.rotate is not None:
        q, k = branch.rotate(q), branch.rotate(k)
    scores = q @ k.T * branch.scale
    if branch.distances is not None:
        scores = scores + branch.distances(head, q, k) * branch.scale
    if branch.bias is not None:
        scores = scores + branch.bias(head, len(q), len(k))
    if branch.causal:
        ahead = torch.arange(len(k))[None, :] > torch.arange(len(q))[:, None]
        scores = scores.masked_fill(ahead, -math.inf)
    if hidden is not None:
        scores = scores.masked_fill(hidden[None, :], -math.inf)
    return scores.softmax(-1)
