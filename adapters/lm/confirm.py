"""Whether the parts of a model are what its family says they are, shown on the user's own module.

An open mask and a closed one do not tell heads, queries, keys and values apart: their messages add
up to the same in any order. So two more things must hold:

- what a query, a key and a value do inside each layer's attention is what their names say;
- a masked run without one head of each layer, in which one query, key and value of each layer do
  not read the embedding, is the module's run in which that head's part of the output map's input is
  put to zero, and those rows of the projections are made from the stream without the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.core.model import Ablation
from graphprune.errors import UnsupportedModelError

from .describe.architecture import DecoderBlock
from .describe.family import Family
from .describe.module_copies import model_inputs, part, quiet
from .describe.reading.roles import AttentionModule, Roles, as_family, find_roles
from .describe.reading.whole_layer import with_hidden
from .model import LanguageModel

__all__ = ["hooked_pair", "require_roles"]

Hook = Callable[..., Any]


def require_roles(model: LanguageModel) -> None:
    """Raises :class:`UnsupportedModelError` unless readers do what their names say."""
    arch, family = model.arch, model.arch.family
    names = ("query", "key", "value", "fused", "fused_order")
    paths = [family.query] if family.fused else [family.query, family.key, family.value]
    tried: dict[tuple[Any, ...], Roles] = {}
    with arch.running(), torch.no_grad():
        glue = arch.glue(arch.drawn_ids(1, min(6, arch.table_positions or 6)))
        for block, call in zip(arch.blocks, glue.calls, strict=True):
            if block.shape.block is not None:
                continue
            at = f"layer {block.index}'s {family.attention}"
            with block.loaded():
                widths = tuple(_features(block, path) for path in paths)
                module = AttentionModule(
                    block.attention, tuple(paths), widths, family.output, call, at
                )
                make = (type(block.attention), widths, *dict(block.attention.named_modules()))
                if make not in tried:
                    tried[make] = find_roles(module, block.heads, block.head_dim, glue.entry)
                roles = tried[make]
            read = Family(family.model_types, **as_family(roles, module))
            wrong = [n for n in names if getattr(read, n) != getattr(family, n)]
            if roles.kv_heads != block.kv_heads:
                wrong.append("kv_heads")
            if wrong or (roles.coupled or roles.norms_couple) > block.coupled:
                said = ", ".join(f"{n}={getattr(family, n)!r}" for n in wrong) or "coupled=False"
                raise UnsupportedModelError(
                    f"{at} does not work as its family says ({said}); what its projections do is "
                    f"{read}, with {roles.kv_heads} key/value heads"
                )


def _features(block: DecoderBlock, path: str) -> int:
    weight = part(block.attention, path).weight
    assert isinstance(weight, Tensor)
    rows = sum(reader.weight.shape[0] for reader in block.readers)
    if block.family.fused:
        return rows * block.head_dim
    count = block.heads if path == block.family.query else block.kv_heads
    return count * block.head_dim


def hooked_pair(model: LanguageModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[B, V]`` of a masked run on ``ids [B, T]`` and of the user's module under hooks.

    In both, one head of each layer sends nothing, and one query, key and value do not read the
    embedding. A mixer that is one node sends its message, and does not read the embedding.
    """
    batch = Batch({"input_ids": ids}, None, len(ids))
    reference = model.reference(batch, Ablation("zero"))
    layout, edges = model.layout, torch.ones(model.graph.num_edges)
    attention, mlps, final = layout.places()
    blocks = model.arch.blocks
    chosen = [(block.index + 1) % block.heads for block in blocks]
    for layer, head in enumerate(chosen):
        if blocks[layer].shape.block is not None:
            continue
        writer = layout.head(layer) + head
        for place in (*attention, *mlps, final):
            if writer < place.prefix:
                place.of(edges)[:, writer] = 0
    rows = [_three_readers(block, head) for block, head in zip(blocks, chosen, strict=True)]
    for place, three in zip(attention, rows, strict=True):
        place.of(edges)[three, 0] = 0
    hooks = _without_heads(model, chosen) + _without_embedding(model, rows)
    return model.run(batch, edges, reference), _plain(model, ids, hooks)


def _three_readers(block: DecoderBlock, head: int) -> list[int]:
    """Row numbers of a head's query, another head's key and a third one's value."""
    if block.family.attention == "" or block.shape.experts:
        return []  # its step is no module of the user's, whose input could be another
    if block.shape.block is not None:
        return [0]
    kv = block.kv_heads
    return [head, block.heads + head % kv, block.heads + kv + (head + 1) % kv]


def _plain(model: LanguageModel, ids: Tensor, hooks: list[tuple[nn.Module, str, Hook]]) -> Tensor:
    """Last logits ``[B, V]`` of the user's own module under forward hooks and pre-hooks."""
    causal: Any = model.module
    with quiet(model.module), torch.no_grad(), _hooked(hooks):
        logits: Tensor = causal(**model_inputs(causal, ids)).logits
    return logits[:, -1]


@contextmanager
def _hooked(hooks: list[tuple[nn.Module, str, Hook]]) -> Iterator[None]:
    handles = []
    try:
        for module, kind, hook in hooks:
            handles.append(getattr(module, kind)(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


_BEFORE, _AFTER = "register_forward_pre_hook", "register_forward_hook"


def _without_heads(model: LanguageModel, heads: list[int]) -> list[tuple[nn.Module, str, Hook]]:
    """Hooks that take one head of each layer out of the attention's message."""
    hooks: list[tuple[nn.Module, str, Hook]] = []
    for block, head in zip(model.arch.blocks, heads, strict=True):
        if block.shape.block is not None:
            continue
        own = slice(head * block.head_dim, (head + 1) * block.head_dim)
        post = block.family.attention_post_norm

        def cut(module: nn.Module, args: Any, kwargs: Any, own: slice = own) -> Any:
            z = args[0].clone()
            z[..., own] = 0
            return (z, *args[1:]), kwargs

        if post is None:
            hooks.append((block.output, _BEFORE, cut))
            continue
        # A norm behind the sum of the heads keeps its scale: the head's share of what it gave goes.
        share: dict[str, Tensor] = {}

        def note(
            module: nn.Module,
            args: Any,
            kwargs: Any,
            out: Any,
            own: slice = own,
            share: dict[str, Tensor] = share,
        ) -> None:
            z = torch.zeros_like(args[0])
            z[..., own] = args[0][..., own]
            forward: Any = module.forward
            share["of"] = forward(z) / out

        def less(
            module: nn.Module, args: Any, kwargs: Any, out: Any, share: dict[str, Tensor] = share
        ) -> Any:
            return out * (1 - share["of"])

        hooks.append((block.output, _AFTER, note))
        hooks.append((part(block.layer, post), _AFTER, less))
    return hooks


def _without_embedding(
    model: LanguageModel, rows: list[list[int]]
) -> list[tuple[nn.Module, str, Hook]]:
    """Hooks that make some rows of the projections from the stream without the embedding."""
    arch, family = model.arch, model.arch.family
    seen: dict[str, Tensor] = {"position": torch.zeros(())}
    hooks: list[tuple[nn.Module, str, Hook]] = []

    def position(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        seen["position"] = out

    if family.position is not None:
        hooks.append((part(arch.base, family.position), _AFTER, position))
    for block, readers in zip(arch.blocks, rows, strict=True):

        def enter(module: nn.Module, args: Any, kwargs: Any, first: bool = not block.index) -> None:
            seen["x"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            if first:
                seen["embedding"] = seen["x"] - seen["position"]

        hooks.append((block.layer, _BEFORE, enter))
        if block.shape.block is not None and readers:

            def read(module: nn.Module, args: Any, kwargs: Any, block: DecoderBlock = block) -> Any:
                x, norm = seen["x"] - seen["embedding"], block.attention_norm
                return with_hidden(args, kwargs, x if norm is None else norm(x))

            hooks.append((part(block.layer, block.family.attention), _BEFORE, read))
            continue
        for path, columns in _stored(block, readers).items():

            def change(
                module: nn.Module,
                args: Any,
                kwargs: Any,
                out: Any,
                block: DecoderBlock = block,
                columns: list[int] = columns,
            ) -> Any:
                x = seen["x"] - seen["embedding"]
                norm, forward = block.attention_norm, module.forward
                new = forward(x if norm is None else norm(x))
                out = out.clone()
                out[..., columns] = new.view(out.shape)[..., columns]
                return out

            hooks.append((part(block.attention, path), _AFTER, change))
    return hooks


def _stored(block: DecoderBlock, readers: list[int]) -> dict[str, list[int]]:
    """Columns of each projection's output that belong to readers."""
    family, dim, found = block.family, block.head_dim, dict[str, list[int]]()
    first = {family.query: 0, family.key: block.heads, family.value: block.heads + block.kv_heads}
    for reader in readers:
        if family.fused:
            order = family.stored_order(block.heads, block.kv_heads)
            path, at = family.query, order.index(reader)
        else:
            path, start = max((p for p in first.items() if p[1] <= reader), key=lambda p: p[1])
            at = reader - start
        found.setdefault(path, []).extend(range(at * dim, (at + 1) * dim))
    return found
