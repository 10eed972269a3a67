"""Whether the parts of a model are what its family says they are, shown on the user's own module.

An open mask and a closed one do not tell heads, queries, keys and values apart: their messages add
up to the same in any order. So three more things must hold:

- what a query, a key and a value do inside each layer's attention is what their names say;
- a masked run without one head of each layer is the module's run with that head's part of the
  output map's input put to zero;
- a masked run in which one query, key and value of each layer do not read the embedding is the
  module's run in which their rows of the projections are made from the stream without it.
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
from .describe.reading.roles import AttentionModule, as_family, find_roles
from .model import LanguageModel

__all__ = ["hooked_pairs", "require_roles"]

Hook = Callable[..., Any]
Pair = tuple[str, Tensor, Tensor]


def require_roles(model: LanguageModel) -> None:
    """Raises :class:`UnsupportedModelError` unless readers do what their names say."""
    arch, family = model.arch, model.arch.family
    names = ("query", "key", "value", "fused", "fused_order")
    paths = [family.query] if family.fused else [family.query, family.key, family.value]
    with arch.running(), torch.no_grad():
        glue = arch.glue(arch.drawn_ids(1, min(6, arch.table_positions or 6)))
        for block, call in zip(arch.blocks, glue.calls, strict=True):
            at = f"layer {block.index}'s {family.attention}"
            with block.loaded():
                widths = tuple(_features(block, path) for path in paths)
                module = AttentionModule(
                    block.attention, tuple(paths), widths, family.output, call, at
                )
                roles = find_roles(module, block.heads, block.head_dim, glue.entry)
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


def hooked_pairs(model: LanguageModel, ids: Tensor, mask: Tensor) -> Iterator[Pair]:
    """What a masked run and the user's own module under hooks give: a name and both logits.

    ``ids [B, T]``, ``mask [B, T]``: right-padded prompts, read at their last tokens.
    """
    batch = Batch({"input_ids": ids, "attention_mask": mask}, None, len(ids))
    reference = model.reference(batch, Ablation("zero"))
    layout, edges = model.layout, torch.ones(model.graph.num_edges)
    attention, mlps, final = layout.places()
    chosen = [(block.index + 1) % block.heads for block in model.arch.blocks]
    for layer, head in enumerate(chosen):
        writer = layout.head(layer) + head
        for place in (*attention, *mlps, final):
            if writer < place.prefix:
                place.of(edges)[:, writer] = 0
    theirs = _plain(model, ids, mask, _without_heads(model, chosen))
    yield "a run without one head of each layer", model.run(batch, edges, reference), theirs
    edges = torch.ones(model.graph.num_edges)
    rows = [
        _three_readers(block, head) for block, head in zip(model.arch.blocks, chosen, strict=True)
    ]
    for place, three in zip(attention, rows, strict=True):
        place.of(edges)[three, 0] = 0
    theirs = _plain(model, ids, mask, _without_embedding(model, rows))
    yield (
        "a run in which one query, key and value of each layer do not read the embedding",
        model.run(batch, edges, reference),
        theirs,
    )


def _three_readers(block: DecoderBlock, head: int) -> list[int]:
    """Row numbers of a head's query, another head's key and a third one's value."""
    kv = block.kv_heads
    return [head, block.heads + head % kv, block.heads + kv + (head + 1) % kv]


def _plain(
    model: LanguageModel, ids: Tensor, mask: Tensor, hooks: list[tuple[nn.Module, str, Hook]]
) -> Tensor:
    """Logits ``[B, V]`` of the user's own module under forward hooks and pre-hooks."""
    causal: Any = model.module
    with quiet(model.module), torch.no_grad(), _hooked(hooks):
        inputs = model_inputs(causal, ids) | {"attention_mask": mask}
        logits: Tensor = causal(**inputs).logits
    return logits[torch.arange(len(ids)), mask.sum(1) - 1]


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
