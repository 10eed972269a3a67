"""Families of decoder-only models, described as data: where the parts of a layer are.

Nothing here computes. A family names submodules by their dotted path; attention itself (rotary
embeddings, masks, windows, soft caps, q/k norms) is run by the user's own module, with its
projections replaced (see ``module_copies``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Literal

from torch import nn

from graphprune.errors import UnsupportedModelError

__all__ = [
    "FAMILIES",
    "FAMILY_BY_TYPE",
    "Carried",
    "Family",
    "LayerSteps",
    "known_types",
    "not_known",
]


@dataclass(frozen=True)
class LayerSteps:
    """A layer that does more with its stream than add to it: one or two nodes, run by its own code.

    A node's message is what its step changes of the stream. Paths are the layer's own.

    ``node``: the letter of the first (``"a"`` attention, ``"s"`` another mixer, ``"m"`` what mixes
    no tokens). ``middle``: the module that gives (``side="output"``) or reads (``"input"``) the
    stream between the steps; ``None``: the layer is one step. The second step, node ``m``, is the
    layer with the ``silent`` modules adding nothing, and the stream in the middle for its input and
    for what the module ``given`` gives (if it is the ``middle``, on its ``side``). ``scaled``: the
    silent layer multiplies each feature of its input before the middle, which is undone first.
    ``mixes``: whether the second step reads other tokens too.
    """

    node: str
    middle: str | None = None
    side: Literal["input", "output"] = "output"
    given: str | None = None
    silent: tuple[str, ...] = ()
    scaled: bool = False
    mixes: bool = False


@dataclass(frozen=True)
class Carried:
    """One tensor of the stream that layers hand on, where that is not ``[B, T, D]`` alone.

    ``argument``: where a layer is called with it, a position or a keyword; ``output``: its place
    among what a layer gives (``None``: all it gives). ``shape``: of one token's numbers. ``axes``:
    ``"usual"`` ``[B, T, *shape]``, ``"tokens first"`` ``[T, B, *shape]``, ``"vectors first"``
    ``[vectors, B, T, D]``, or ``"vectors as tokens"`` ``[B, vectors * T, D]``, all tokens' first
    vectors before their second.
    """

    argument: int | str
    output: int | None
    shape: tuple[int, ...]
    axes: Literal["usual", "tokens first", "vectors first", "vectors as tokens"] = "usual"


@dataclass(frozen=True)
class Family:
    """Where the parts of a model are.

    ``base`` is the path from the causal model to its decoder; paths under it: ``layers``,
    ``embedding``, ``position`` (an added position table), ``final_norm`` (``None`` means there is
    none). Paths under a layer: ``attention`` (the module that owns the projections), ``mlp`` and up
    to four norms. Paths under ``attention``: ``query``, ``key``, ``value``, or one of them for a
    fused projection, whose rows are ordered as ``fused`` says: ``"blocks"`` (all q, all k, all v),
    ``"interleaved"`` (key head by key head: its queries, its key, its value) or a number of equal
    chunks that each hold q, k and v, in the order of ``fused_order``; and ``output``. ``heads`` and
    ``kv_heads`` are numbers, or where the config has them (``None``: under the usual names).
    ``parallel`` is true, false, or the config's flag for it. ``full_width_qk_norm`` couples the
    heads of a layer (so do post-norms, and whatever else ``coupled`` stands for).
    ``causal=False``: a position also reads later ones, so what stands before a changed token
    changes too, and the module itself must keep padding out of its attention.

    ``mlp=None``: the layer does more with its MLP (or mixture of experts) than add what one module
    gives, so the layer itself is run on an empty stream, its attention silent. Only then may
    ``residual_multiplier`` differ from 1: the attention's output is multiplied with it before it is
    added to the stream.

    ``mlp=""``: layers have no MLP, only a mixer that is one node.

    ``blocks``: mixers that are not split by head, each the letter of its node (``"a"`` attention,
    ``"s"`` any other) and its path under a layer. A layer that has a module there has it for its
    mixer, one node with one reader; only the other layers have attention by heads.

    ``steps``: for each layer how it is taken in steps, or ``None`` for a layer that adds a mixer's
    and an MLP's messages to its stream as everything above says (``()``: all do).

    ``experts``: a mixture of experts is a node for each expert and a reader for their router, in
    the layers that have one and are not taken in steps.

    ``carried``: what layers hand on, where that is more than one vector a token (hyper-connections,
    a second stream, what a router keeps for the next). All layers are then one step each, and the
    base model's own code reads what the last one gives.
    """

    model_types: tuple[str, ...]
    base: str = "model"
    layers: str = "layers"
    embedding: str = "embed_tokens"
    position: str | None = None
    final_norm: str | None = "norm"
    attention: str = "self_attn"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    fused: Literal["blocks", "interleaved"] | int | None = None
    fused_order: str = "qkv"
    output: str = "o_proj"
    heads: int | str | None = None
    kv_heads: int | str | None = None
    mlp: str | None = "mlp"
    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    parallel: bool | str = False
    full_width_qk_norm: bool = False
    coupled: bool = False
    residual_multiplier: float = 1.0
    causal: bool = True
    blocks: tuple[tuple[str, str], ...] = ()
    steps: tuple[LayerSteps | None, ...] = ()
    carried: tuple[Carried, ...] = ()
    experts: bool = False

    def __str__(self) -> str:
        """The expression that makes it, settings as by default left out."""
        said = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)[1:]
            if getattr(self, f.name) != f.default
        ]
        return f"Family({', '.join([repr(self.model_types), *said])})"

    @property
    def carries(self) -> int:
        """How many numbers a token has in all that is ``carried``."""
        return sum(prod(each.shape) for each in self.carried)

    def with_blocks(self) -> Family:
        """The same family whose attention is not split by head either."""
        return replace(self, blocks=(*self.blocks, ("a", self.attention)))

    def in_layer(self, layer: nn.Module, number: int) -> Family:
        """The description of one layer alone; its mixer is one node if that has ``blocks``."""
        one = replace(
            self,
            query="read",
            fused="blocks",
            fused_order="qkv",
            output="send",
            heads=1,
            kv_heads=0,
        )
        steps = self.steps[number] if self.steps else None
        if steps is not None:
            return replace(
                one,
                attention="",
                attention_norm=None,
                attention_post_norm=None,
                mlp="" if steps.middle is None or steps.mixes else None,
                mlp_norm=None,
                mlp_post_norm=None,
                coupled=self.coupled or self.attention_post_norm is not None,
                residual_multiplier=1.0,
                blocks=((steps.node, ""),),
                steps=(),
            )
        paths = {path for path, _ in layer.named_modules()}
        for block in self.blocks:
            if block[1] in paths:
                return replace(one, attention=block[1], blocks=(block,), steps=())
        return replace(self, blocks=(), steps=())

    def stored_order(self, heads: int, kv_heads: int) -> list[int]:
        """The reader of each row block of a fused projection, as its weight stores them.

        Readers are numbered: q of each head, then k of each key/value head, then v.
        """
        chunks = {"blocks": 1, "interleaved": kv_heads}.get(str(self.fused)) or int(str(self.fused))
        first = {"q": 0, "k": heads, "v": heads + kv_heads}
        rows: list[int] = []
        for chunk in range(chunks):
            for kind in self.fused_order:
                each = (heads if kind == "q" else kv_heads) // chunks
                start = first[kind] + chunk * each
                rows += range(start, start + each)
        return rows


_GPT_NEO = Family(
    ("gpt_neo",),
    base="transformer",
    layers="h",
    embedding="wte",
    position="wpe",
    final_norm="ln_f",
    attention="attn.attention",
    output="out_proj",
    attention_norm="ln_1",
    mlp_norm="ln_2",
)

FAMILIES: tuple[Family, ...] = (
    Family(("llama", "mistral", "qwen2", "qwen3")),
    _GPT_NEO,
    replace(
        _GPT_NEO,
        model_types=("gpt2",),
        attention="attn",
        query="c_attn",
        fused="blocks",
        output="c_proj",
    ),
    Family(
        ("gpt_neox",),
        base="gpt_neox",
        embedding="embed_in",
        final_norm="final_layer_norm",
        attention="attention",
        query="query_key_value",
        fused="interleaved",
        output="dense",
        parallel="use_parallel_residual",
    ),
    Family(("phi3",), query="qkv_proj", fused="blocks"),
    Family(
        ("olmo2",),
        attention_norm=None,
        attention_post_norm="post_attention_layernorm",
        mlp_norm=None,
        mlp_post_norm="post_feedforward_layernorm",
        full_width_qk_norm=True,
    ),
    Family(
        ("gemma2", "gemma3_text"),
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
)


def known_types() -> list[str]:
    """Hugging Face's model types that some family has, sorted."""
    return sorted(FAMILY_BY_TYPE)


FAMILY_BY_TYPE = {kind: family for family in FAMILIES for kind in family.model_types}


def not_known(config: Any) -> UnsupportedModelError:
    """The error where a configuration alone must do, and no family has its model type."""
    return UnsupportedModelError(
        f"model type {getattr(config, 'model_type', None)!r} is not known, so that nothing can be "
        f"estimated from its configuration; known: {', '.join(known_types())}. gp.wrap reads the "
        "structure of other models off the loaded module"
    )
