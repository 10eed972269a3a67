"""Building a circuit's own module: layer by layer, constants computed on the way.

Weights are copies. What is ablated is a constant for each reader, or one for each position; what
depends on no token and no position is computed here and becomes part of such constants.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from graphprune.core.model import Ablation
from graphprune.errors import InputError, UnsupportedModelError

from ..describe.architecture import Architecture, DecoderBlock
from ..describe.attention import describe_attention
from ..describe.embeddings import embedding, max_positions, unembedding
from ..describe.layout import EdgeLayout
from ..describe.norms import Norm, matrix, wide
from ..passes.values import Values
from .liveness import CONSTANT, POSITIONAL, VARYING, liveness
from .module import Attention, Mlp, PrunedModel, PrunedProjection, ReaderSum
from .plain import Attending, PlainNorm
from .sums import SumPlanner

__all__ = ["pruned_module", "stand_ins"]


def pruned_module(
    arch: Architecture, layout: EdgeLayout, kept: Tensor, ablation: Ablation, last: int | None
) -> PrunedModel:
    """The circuit ``kept [E]`` bool as a module; call it inside ``quiet``, without gradients.

    ``last``: at how many of the last positions it gives logits; ``None`` means at all.

    Raises :class:`UnsupportedModelError` for an architecture that plain torch operations do not
    reproduce, :class:`InputError` for means of another model.
    """
    if not arch.family.causal:
        raise UnsupportedModelError(
            "this model reads in both directions and hides padding by itself; only causal models "
            "become modules of their own"
        )
    if arch.family.mlp is None:
        raise UnsupportedModelError(
            "this model's layers are run whole, as no module of theirs is their MLP alone; a "
            "circuit of it does not become a module of its own"
        )
    if arch.partial:
        raise UnsupportedModelError(
            "some of the model's weights are offloaded or sharded; load the whole model to make a "
            "module of a circuit"
        )
    builder = _Builder(arch, layout, kept.cpu(), stand_ins(arch, layout, ablation), last)
    # Copies of frozen weights are frozen.
    return builder.build().eval().requires_grad_(True)


def stand_ins(arch: Architecture, layout: EdgeLayout, ablation: Ablation) -> Tensor | None:
    """``[W, 1 or T, D]`` float64: what replaces each writer's message; ``None`` means zeros."""
    if ablation.kind == "zero":
        return None
    if ablation.kind == "counterfactual":
        raise InputError(
            "a circuit under counterfactual ablation needs the corrupted prompt at every call, so "
            "it is no model of its own; use ablation='zero', 'mean' or 'mean_positional'"
        )
    if ablation.kind == "optimal":
        (constants,) = ablation.parameters
        if constants.shape != (layout.writers, arch.width):
            raise InputError(
                f"these constants have the shape {list(constants.shape)}; this model has "
                f"{layout.writers} writers of width {arch.width}"
            )
        return constants.detach().double()[:, None]
    means = Values.means_of(ablation, layout, arch.width)
    messages = [means.embed[:, 0].double()]
    for block, code, mlp in zip(arch.blocks, means.codes, means.mlps, strict=True):
        # Codes enter a run in the model's dtype, so they are rounded to it here too.
        split = code[0].to(arch.dtype).double().unflatten(-1, (block.heads, -1)).transpose(0, 1)
        messages += [torch.bmm(split, block.senders(False).double()), mlp.double()]
    return torch.cat(messages)


class _Builder:
    def __init__(
        self,
        arch: Architecture,
        layout: EdgeLayout,
        kept: Tensor,
        ablated: Tensor | None,
        last: int | None,
    ) -> None:
        self.arch, self.layout, self.kept, self.ablated = arch, layout, kept, ablated
        self.last = last
        self.attention, self.mlps, self.final = layout.places()
        self.every = 1 if ablated is None else ablated.shape[1]
        position = arch.family.position is not None
        loose = position and layout.embeddings == 1
        self.live = liveness(
            layout,
            kept,
            POSITIONAL if loose or self.every > 1 else CONSTANT,
            layout.embeddings > 1,
            last is not None,
        )
        self.values = torch.zeros(layout.writers, 1, arch.width, dtype=torch.float64)
        self.values = self.values.to(arch.device)
        self.bias = self.values.new_zeros(1, arch.width)
        # A position table that is no node has the number behind the last writer's.
        self.planner = SumPlanner(layout.writers + 1, arch.dtype, last)
        self.senders: list[int] = []
        if self.live.needed[0]:
            self.send(0, still=False, tail=self.tail(0))
        self.position: int | None = None
        if loose:
            self.position = layout.writers
        elif layout.embeddings == 2 and self.live.needed[1]:
            self.position = 1
        if self.position is not None:
            self.send(self.position, still=True, tail=False)
        self.read_by = self._readers()

    def tail(self, writer: int) -> bool:
        """Whether a message is wanted at the last positions alone."""
        return self.last is not None and not bool(self.live.whole[writer])

    def _readers(self) -> Tensor:
        """``[readers, W]`` bool: every needed reader's kept edges."""
        edges = []
        needed, layout = self.live.needed, self.layout
        for layer in range(layout.layers):
            edges.append(self.attention[layer].of(self.kept)[self.live.needed_rows[layer]])
            if needed[layout.mlp(layer)]:
                edges.append(self.mlps[layer].of(self.kept))
        edges.append(self.final.of(self.kept))
        return torch.cat([nn.functional.pad(f, (0, layout.writers - f.shape[1])) for f in edges])

    # ------------------------------------------------------------- what readers read

    def constant(self, rows: Tensor) -> Tensor:
        """``[R, 1 or T, D]`` float64: what readers with the edges ``rows [R, prefix]`` always read.

        Ablated messages, constant messages and output biases; no table of positions.
        """
        prefix = rows.shape[1]
        out = self.bias.expand(len(rows), self.every, -1).clone()
        if self.ablated is not None:
            cut = (~rows).to(self.ablated)
            out += torch.einsum("rw,wtd->rtd", cut, self.ablated[:prefix])
        still = self.live.writers[:prefix] == CONSTANT
        held = (rows & still).to(self.values)
        return out + torch.einsum("rw,wtd->rtd", held, self.values[:prefix])

    def readings(self, rows: Tensor, tails: list[bool]) -> list[tuple[int, ReaderSum]]:
        """Inputs of readers with the edges ``rows [G, prefix]``, each with its row, in order."""
        prefix = rows.shape[1]
        kept = torch.zeros(len(rows), self.planner.slots, dtype=torch.bool)
        for writer in self.senders:
            if writer == self.layout.writers:
                kept[:, writer] = True
            elif writer < prefix:
                kept[:, writer] = rows[:, writer]
        return self.planner.read(kept, self.constant(rows), tails)

    def send(self, writer: int, *, still: bool, tail: bool) -> int:
        """Notes that a message of ``writer`` (and of those read with it) is sent; its number."""
        self.senders.append(writer)
        self.planner.send(writer, still=still, tail=tail)
        return writer

    # ------------------------------------------------------------- layers

    def build(self) -> PrunedModel:
        arch, layout = self.arch, self.layout
        stages: list[nn.Module] = []
        for block in arch.blocks:
            first = layout.head(block.index)
            bias = matrix(block.output, "output")[1]
            before = self.bias
            after = before if bias is None else before + bias.double()
            stages += self._attention(block)
            self.bias = before if block.parallel else after
            if self.live.needed[first + block.heads]:
                stages += self._mlp(block)
            self.bias = after
        scale, table = embedding(arch)
        head, weight = unembedding(arch)
        shared = None
        if self.live.needed[0]:
            # One weight for both ends where the model ties them.
            shared = head.weight if weight is table else nn.Parameter(table.detach().clone())
        position = None
        if self.position is not None and arch.position_table is not None:
            position = self.position, arch.position_table.detach().clone()
        (final,) = self.readings(self.final.of(self.kept), [self.last is not None])
        self.planner.finish()
        return PrunedModel(
            table=shared,
            scale=scale,
            table_last=self.tail(0),
            position=position,
            stages=stages,
            final=final[1],
            unembedding=head,
            last=self.last,
            longest=max_positions(arch),
            exact=self.every if self.every > 1 else None,
        )

    def _attention(self, block: DecoderBlock) -> list[nn.Module]:
        layout, first = self.layout, self.layout.head(block.index)
        kinds = self.live.writers[first : first + block.heads]
        wanted = self.live.needed[first : first + block.heads]
        together = layout.coupled and bool(wanted.any())
        computed = torch.ones_like(wanted) if together else wanted
        self._constant_heads(block, torch.nonzero(computed & (kinds == CONSTANT))[:, 0])
        tails = torch.tensor([self.tail(first + h) for h in range(block.heads)])
        if together:
            tails[:] = bool(tails[wanted].all())
        attending: Attending | None = None
        stages: list[nn.Module] = []
        for kind in (POSITIONAL, VARYING):
            for tail in (False, True):
                heads = torch.nonzero(computed & (kinds == kind) & (tails == tail))[:, 0]
                if len(heads):
                    attending = attending or describe_attention(self.arch, block)
                    varying = kind == VARYING
                    stages.append(self._heads(block, heads, wanted, attending, varying, tail))
        return stages

    def _heads(
        self,
        block: DecoderBlock,
        heads: Tensor,
        wanted: Tensor,
        attending: Attending,
        varying: bool,
        tail: bool,
    ) -> Attention:
        classes = self._classes(block, heads[wanted[heads]])
        order = [h for members in classes for h in members]
        order += [h for h in heads.tolist() if h not in set(order)]
        heads = torch.tensor(order)
        kv, share = torch.unique(heads // (block.heads // block.kv_heads), return_inverse=True)
        rows = torch.cat([heads, block.heads + kv, block.heads + block.kv_heads + kv])
        projections, held, held_rows = self._projections(block, rows, len(heads) if tail else 0)
        own = len(kv) == len(heads) and bool((share == torch.arange(len(heads))).all())
        if attending.wide and attending.norms is not None:
            attending = replace(attending, norms=_reordered(attending.norms, heads, block.head_dim))
        weight = block.output_weight.detach()
        rest = order[sum(len(members) for members in classes) :]
        first, norm = self.layout.head(block.index), block.attention_norm
        return Attention(
            projections,
            None if norm is None else PlainNorm(norm, bare=True),
            held,
            held_rows,
            None if own else share.to(weight.device),
            attending,
            [weight[members].flatten(0, 1).contiguous() for members in [*classes, rest] if members],
            [self.send(first + members[0], still=not varying, tail=tail) for members in classes],
            block.attention_post_norm,
            varying=varying,
            last=tail,
            heads=len(heads),
        )

    def _classes(self, block: DecoderBlock, heads: Tensor) -> list[list[int]]:
        """Heads that are read by the same readers, together."""
        first = self.layout.head(block.index)
        classes: dict[bytes, list[int]] = {}
        for head in heads.tolist():
            classes.setdefault(self.read_by[:, first + head].numpy().tobytes(), []).append(head)
        return list(classes.values())

    def _projections(
        self, block: DecoderBlock, rows: Tensor, tail: int
    ) -> tuple[list[PrunedProjection], Tensor | None, list[int]]:
        """Projections of ``rows``, and those that are constants with their numbers among ``rows``.

        The first ``tail`` are wanted at the last positions alone.
        """
        kept = self.attention[block.index].of(self.kept)[rows]
        still = self.live.rows[block.index][rows] == CONSTANT
        groups: dict[tuple[bool, bytes], list[int]] = {}
        for at in torch.nonzero(~still)[:, 0].tolist():
            groups.setdefault((at < tail, kept[at].numpy().tobytes()), []).append(at)
        weight, bias = _folded_rows(block, rows)
        members, projections = list(groups.values()), []
        if members:
            tails = [last for last, _ in groups]
            for group, reading in self.readings(kept[[m[0] for m in members]], tails):
                some = members[group]
                folded = None if bias is None else bias[some].flatten()
                projections.append(
                    PrunedProjection(reading, some, weight[some].flatten(0, 1), folded)
                )
        held_rows = torch.nonzero(still)[:, 0]
        held = self._held(block, rows[held_rows]) if len(held_rows) else None
        return projections, held, held_rows.tolist()

    def _held(self, block: DecoderBlock, rows: Tensor) -> Tensor:
        """``[R, dh]``: projections of rows that read constants."""
        x = self.constant(self.attention[block.index].of(self.kept)[rows])[:, 0]
        x = x.to(self.arch.dtype)
        x = x if block.attention_norm is None else block.attention_norm(x)
        weight, bias = _plain_rows(block, rows)
        out = torch.einsum("rd,rhd->rh", x, weight)
        return out if bias is None else out + bias

    def _constant_heads(self, block: DecoderBlock, heads: Tensor) -> None:
        if not len(heads):
            return
        z = self._held(block, block.rows_of(heads)[2]).double()
        weight = block.output_weight[heads].double()
        messages = torch.einsum("hc,hcd->hd", z, weight)
        norm = block.attention_post_norm
        if norm is not None:
            scale = torch.rsqrt(messages.sum(0).square().mean() + norm.eps)
            messages = messages * scale * norm.gain.double()
        self.values[heads + self.layout.head(block.index)] = messages[:, None]

    def _mlp(self, block: DecoderBlock) -> list[nn.Module]:
        writer = self.layout.head(block.index) + block.heads
        kind = int(self.live.writers[writer])
        rows = self.mlps[block.index].of(self.kept)
        if kind == CONSTANT:
            x = self.constant(rows).to(self.arch.dtype)
            y = block.mlp(x if block.mlp_norm is None else block.mlp_norm(x))
            y = y if block.mlp_post_norm is None else block.mlp_post_norm(y)
            self.values[writer] = y[0].double()
            return []
        tail = self.tail(writer)
        ((_, reading),) = self.readings(rows, [tail])
        slot = self.send(writer, still=kind != VARYING, tail=tail)
        return [Mlp(reading, block.mlp_norm, block.mlp, block.mlp_post_norm, slot)]


# ------------------------------------------------------------------ rows of projections


def _plain_rows(block: DecoderBlock, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """``[R, dh, D]`` and ``[R, dh]``: the user's projections of ``rows``, copied."""
    readers = block.readers
    weight = torch.cat([reader.weight for reader in readers]).detach()[rows]
    if all(reader.bias is None for reader in readers):
        return weight, None
    biases = [weight.new_zeros(r.weight.shape[:2]) if r.bias is None else r.bias for r in readers]
    return weight, torch.cat(biases).detach()[rows]


def _folded_rows(block: DecoderBlock, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The same with the gain and bias of the norm in front."""
    weight, bias = _plain_rows(block, rows)
    norm = block.attention_norm
    if norm is None:
        return weight, bias
    if norm.bias is not None:
        moved = wide(weight) @ wide(norm.bias)
        bias = (moved if bias is None else wide(bias) + moved).to(weight.dtype)
    return (wide(weight) * wide(norm.gain)).to(weight.dtype), bias


def _reordered(norms: tuple[Norm, Norm], heads: Tensor, width: int) -> tuple[Norm, Norm]:
    """Norms over all heads' features, with the queries' heads in another order."""
    q, k = norms
    gain, bias = q.gain, q.bias
    gain = gain.unflatten(0, (-1, width))[heads].flatten()
    bias = None if bias is None else bias.unflatten(0, (-1, width))[heads].flatten()
    return replace(q, kept=(gain, bias)), k
