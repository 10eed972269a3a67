"""Families of encoders, vision transformers and encoder-decoders, described as data.

Nothing here computes. A family is one or two stacks of layers over a residual stream; a stack names
its modules by their dotted paths. Attention itself is run by the user's own module.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["RESIDUAL_FAMILIES", "Attention", "Mlp", "ResidualFamily", "Stack"]


@dataclass(frozen=True)
class Attention:
    """An attention branch: paths of its projections and its norm under a layer.

    ``query``, ``key`` and ``value`` are one path where one projection holds all queries, then all
    keys, then all values; with ``by_head`` each head's query, key and value together. ``norm`` is
    applied to what the branch reads, or, with ``post``, to the stream after the branch was added.
    ``scale``: what the output is multiplied with, element by element, before it is added.
    ``cross``: keys and values read the encoder's output.
    """

    query: str
    key: str
    value: str
    output: str
    norm: str
    post: bool = False
    cross: bool = False
    by_head: bool = False
    scale: str | None = None


@dataclass(frozen=True)
class Mlp:
    """An MLP branch: paths of the modules that read its input, and of the one that gives output.

    ``norm`` and ``post`` as for :class:`Attention`.
    """

    inputs: tuple[str, ...]
    output: str
    norm: str
    post: bool = False


@dataclass(frozen=True)
class Stack:
    """Layers that add to one residual stream.

    ``base`` is the path from the model to the stack; ``embedding`` (whose output is the message of
    the node ``input``), ``embedding_norm``, ``resize`` (a linear map behind that norm, left out
    where a model has none), ``layers`` and ``final_norm`` are paths under it. ``inner``: what
    ``layers`` lists are groups of layers under this name, which are run several times to make up
    the depth (ALBERT). ``multiplier``: the base's attribute that embeddings are multiplied with
    before they are added. ``prefix`` begins the names of its nodes.
    """

    base: str
    embedding: str
    layers: str
    branches: tuple[Attention | Mlp, ...]
    embedding_norm: str | None = None
    final_norm: str | None = None
    heads: str = "num_attention_heads"
    prefix: str = ""
    resize: str | None = None
    inner: str | None = None
    multiplier: str | None = None


@dataclass(frozen=True)
class ResidualFamily:
    """An encoder, or an encoder and a decoder; the last stack gives the outputs.

    Example:
        >>> from graphprune.adapters.residual.families import RESIDUAL_FAMILIES
        >>> RESIDUAL_FAMILIES["vit"].stacks[0].embedding
        'embeddings.patch_embeddings.projection'
    """

    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]


def _attention(module: str, names: str, norm: str, **options: Any) -> Attention:
    """An attention whose projections are ``names``, parted by spaces, under one module."""
    query, key, value, output = (f"{module}.{name}" for name in names.split())
    return Attention(query, key, value, output, norm, **options)


_VIT = Stack(
    "vit",
    "embeddings.patch_embeddings.projection",
    "layers",
    (
        _attention("attention", "q_proj k_proj v_proj o_proj", "layernorm_before"),
        Mlp(("mlp",), "mlp", "layernorm_after"),
    ),
)
_CLIP = Stack(
    "vision_model",
    "embeddings.patch_embedding",
    "encoder.layers",
    (
        _attention("self_attn", "q_proj k_proj v_proj out_proj", "layer_norm1"),
        Mlp(("mlp",), "mlp", "layer_norm2"),
    ),
    embedding_norm="pre_layrnorm",
)

_SIGLIP = replace(_CLIP, embedding_norm=None)
_DINOV2 = replace(
    _VIT,
    base="dinov2",
    layers="encoder.layer",
    branches=(
        replace(
            _attention("attention", "q_proj k_proj v_proj o_proj", "norm1"), scale="layer_scale1"
        ),
        Mlp(("mlp",), "layer_scale2", "norm2"),
    ),
)

_BERT = Stack(
    "bert",
    "embeddings.word_embeddings",
    "encoder.layer",
    (
        Attention(
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            post=True,
        ),
        Mlp(("intermediate.dense",), "output.dense", "output.LayerNorm", post=True),
    ),
    embedding_norm="embeddings.LayerNorm",
)
_ELECTRA = replace(_BERT, base="electra", resize="embeddings_project")
_ALBERT = Stack(
    "albert",
    "embeddings.word_embeddings",
    "encoder.albert_layer_groups",
    (
        _attention("attention", "query key value dense", "attention.LayerNorm", post=True),
        Mlp(("ffn",), "ffn_output", "full_layer_layer_norm", post=True),
    ),
    embedding_norm="embeddings.LayerNorm",
    resize="encoder.embedding_hidden_mapping_in",
    inner="albert_layers",
)
_MPNET = replace(
    _BERT,
    base="mpnet",
    branches=(
        _attention("attention.attn", "q k v o", "attention.LayerNorm", post=True),
        _BERT.branches[1],
    ),
)
_DEBERTA = replace(
    _BERT,
    base="deberta",
    branches=(
        Attention(
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.output.dense",
            "attention.output.LayerNorm",
            post=True,
        ),
        _BERT.branches[1],
    ),
)
_DISTILBERT = Stack(
    "distilbert",
    "embeddings.word_embeddings",
    "transformer.layer",
    (
        _attention("attention", "q_lin k_lin v_lin out_lin", "sa_layer_norm", post=True),
        Mlp(("ffn.lin1",), "ffn.lin2", "output_layer_norm", post=True),
    ),
    embedding_norm="embeddings.LayerNorm",
)
_MODERNBERT = Stack(
    "model",
    "embeddings.tok_embeddings",
    "layers",
    (
        _attention("attn", "Wqkv Wqkv Wqkv Wo", "attn_norm"),
        Mlp(("mlp",), "mlp", "mlp_norm"),
    ),
    embedding_norm="embeddings.norm",
)


def _t5(base: str, prefix: str) -> Stack:
    names, decodes = "q k v o", base == "decoder"
    own = _attention("layer.0.SelfAttention", names, "layer.0.layer_norm")
    cross = _attention("layer.1.EncDecAttention", names, "layer.1.layer_norm", cross=True)
    last = f"layer.{1 + decodes}"
    mlp = Mlp((f"{last}.DenseReluDense",), f"{last}.DenseReluDense", f"{last}.layer_norm")
    return Stack(
        base,
        "embed_tokens",
        "block",
        (own, cross, mlp) if decodes else (own, mlp),
        final_norm="final_layer_norm",
        prefix=prefix,
    )


def _bart(
    side: str, prefix: str, *, post: bool = True, norm: bool = True, scaled: bool = False
) -> Stack:
    """A side of BART, or of its kin: norms before branches, no norm of the embedding."""
    names = "q_proj k_proj v_proj out_proj"
    own = _attention("self_attn", names, "self_attn_layer_norm", post=post)
    cross = _attention("encoder_attn", names, "encoder_attn_layer_norm", post=post, cross=True)
    mlp = Mlp(("fc1",), "fc2", "final_layer_norm", post=post)
    return Stack(
        f"model.{side}",
        "embed_tokens",
        "layers",
        (own, cross, mlp) if side == "decoder" else (own, mlp),
        embedding_norm="layernorm_embedding" if norm else None,
        final_norm=None if post else "layer_norm",
        heads=f"{side}_attention_heads",
        prefix=prefix,
        multiplier="embed_scale" if scaled else None,
    )


def _barts(*types: str, **options: bool) -> ResidualFamily:
    return ResidualFamily(
        types, (_bart("encoder", "e.", **options), _bart("decoder", "d.", **options))
    )


FAMILIES = (
    ResidualFamily(("vit",), (_VIT,)),
    ResidualFamily(("deit",), (replace(_VIT, base="deit"),)),
    ResidualFamily(("clip", "clip_vision_model"), (_CLIP,)),
    ResidualFamily(("siglip",), (_SIGLIP,)),
    ResidualFamily(("dinov2",), (_DINOV2,)),
    ResidualFamily(("bert",), (_BERT,)),
    ResidualFamily(("camembert", "roberta", "xlm-roberta"), (replace(_BERT, base="roberta"),)),
    ResidualFamily(("electra",), (_ELECTRA,)),
    ResidualFamily(("albert",), (_ALBERT,)),
    ResidualFamily(("mpnet",), (_MPNET,)),
    ResidualFamily(("deberta-v2",), (_DEBERTA,)),
    ResidualFamily(("distilbert",), (_DISTILBERT,)),
    ResidualFamily(("modernbert",), (_MODERNBERT,)),
    ResidualFamily(("mt5", "t5"), (_t5("encoder", "e."), _t5("decoder", "d."))),
    _barts("bart"),
    _barts("marian", norm=False, scaled=True),
    _barts("mbart", post=False),
    _barts("blenderbot", "m2m_100", post=False, norm=False),
    _barts("pegasus", post=False, norm=False, scaled=True),
)

RESIDUAL_FAMILIES = {kind: family for family in FAMILIES for kind in family.model_types}
