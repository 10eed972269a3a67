"""Attribution: gradients at every reader, contracted with the writers' Deltas.

At the clean model, or with whole nodes gated, all readers of a place share one input, so no input
is split: the gradient at a reader is the ordinary gradient at its projection's output, pulled back
through that projection's rows and the norm in closed form, then contracted with the writers'
differences Delta (clean minus ablated).

What a projection reads goes through a norm, ``x_hat * gain``; with ``g = dq * scale`` (gradients at
the projections, times the norm's scale) and ``W`` the projection's rows times the gain, centred for
a LayerNorm, the gradient at a reader's own input is

    g W  -  x_hat (x_hat . g W) / D .

The first term is linear in g with one W for all points, so points are summed before the product;
``x_hat . g W`` is g against the projection's output without its constant part. The second term is
contracted as ``x_hat . Delta`` times that number, for a few points together. A point therefore
costs one number for each projected feature and token, and every large product is made once.

Memory: what is kept for the readers of the points so far, ``KEPT_POINTS`` normed inputs a layer
among it, however many points there are. All sums over tokens are made slice by slice of the tokens,
so that Deltas, ``[W, slice, D]`` in float32, take the room of a slice; while a pass's graph lives
there are none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph
from graphprune.core.model import Gradients, Objective, gradient_points

from ..describe.architecture import Architecture, DecoderBlock
from ..describe.layout import EdgeLayout, Place
from ..describe.norms import Norm, wide
from ..passes.inputs import position_slots
from ..passes.shared import MixedMessages, SharedPass, run_shared
from ..passes.values import LMReference, Values
from .relevance import Rule

__all__ = ["KEPT_POINTS", "Attribution", "attributed", "slice_of_tokens"]


KEPT_POINTS = 5  # whose normed inputs are kept at a time
_NUMBERS = 2**23  # of Deltas that stand side by side at most ...
_TOKENS = 64, 512  # ... but those of so many tokens in any case; if weights come and go


def slice_of_tokens(numbers: int, *, partial: bool) -> int:
    """How many tokens' Deltas stand side by side, where a token has so many ``numbers``.

    ``partial``: the model's weights come and go, or are made anew, for every slice.
    """
    return max(_TOKENS[partial], _NUMBERS // numbers)


@dataclass(eq=False)
class _Projected:
    """What is kept of the points so far at one attention place.

    ``grad [R, n, dh]`` sums ``g``. ``along`` holds ``(x [n, D], x_hat . g W [R, n])``, where x is
    the residual stream: a reference's values hold it too, x_hat would be one tensor more.
    """

    grad: Tensor | None = None
    along: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, block: DecoderBlock, run: SharedPass, grad: Tensor, frozen: bool) -> None:
        """One more point: ``grad [B, T, rows * dh]`` at the projections' output."""
        split = grad.reshape(-1, block.rows, block.head_dim).transpose(0, 1)
        norm = block.attention_norm
        if norm is not None:
            x = run.stream[2 * block.index].detach().flatten(0, 1)
            x_hat, scale = norm.statistics(x)
            split = split * scale
            if not frozen:
                linear = _linear(block, norm, x_hat, run.projected[block.index].detach())
                self.along.append((x, (wide(split) * wide(linear)).sum(-1)))
        # Sums over points stand in float32; of one point there is none.
        self.grad = split if self.grad is None else wide(self.grad) + wide(split)

    def linear(self, block: DecoderBlock, tokens: Tensor) -> Tensor:
        """``[R, s, D]``: ``g W`` at each reader's own input, summed over all points."""
        assert self.grad is not None
        grad, norm = wide(self.grad[:, tokens]), block.attention_norm
        start, readers = 0, block.readers
        out = grad.new_empty(*grad.shape[:2], readers[0].weight.shape[-1])
        for reader in readers:
            stop = start + len(reader.weight)
            torch.bmm(grad[start:stop], wide(reader.weight), out=out[start:stop])
            start = stop
        if norm is not None:  # a slice's tokens are fewer than the weights' rows
            out *= wide(norm.gain)
            if norm.centred:
                out -= out.mean(-1, keepdim=True)
        return out

    def radial(self, block: DecoderBlock, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``x_hat [s, K, D]`` and ``-(x_hat . g W) / D [s, K, R]`` of the K points kept."""
        norm = block.attention_norm
        assert norm is not None
        x_hat = torch.stack([wide(norm.statistics(x[tokens])[0]) for x, _ in self.along], 1)
        along = torch.stack([along[:, tokens].T for _, along in self.along], 1)
        return x_hat, along / -x_hat.shape[-1]


def _linear(block: DecoderBlock, norm: Norm, x_hat: Tensor, projected: Tensor) -> Tensor:
    """``[R, n, dh]``: the projections of ``x_hat`` times the gain, constants left out."""
    if block.rounds is None:
        out = projected.reshape(-1, block.rows, block.head_dim).transpose(0, 1)
        return out - _constant(block, norm, x_hat)
    # The projections are those of rounded inputs, whose gradient is taken as the inputs' own.
    read = x_hat * norm.gain
    return torch.cat([wide(read) @ wide(r.weight).transpose(1, 2) for r in block.readers])


def _constant(block: DecoderBlock, norm: Norm, x_hat: Tensor) -> Tensor:
    """``[R, 1, dh]``: what the projections give at ``x_hat = 0``."""
    if not block.plain:  # the matrices need not be made for it
        zero = x_hat.new_zeros(x_hat.shape[-1])
        at_zero = block.project(zero if norm.bias is None else norm.bias)
        return at_zero.detach().view(block.rows, 1, block.head_dim)
    parts = []
    for reader in block.readers:
        constant = reader.weight.new_zeros(reader.weight.shape[:2])
        if norm.bias is not None:
            constant = reader.weight @ norm.bias
        parts.append(constant if reader.bias is None else constant + reader.bias)
    return torch.cat(parts)[:, None]


class Attribution:
    """Sums ``Delta . gradient`` over points, for every edge (and every neuron, if asked).

    The contraction with Deltas (clean minus ablated) happens when the last point is there, of
    norms' second term whenever ``full``. Sums over examples, in float32 (float64 for a float64
    model).

    ``slots`` (``[B * T]``, and how many) asks for sums by position or span. ``edges`` is ``[E]`` or
    ``[E, slots]``; ``neurons`` is ``[W, D]`` or ``None``.
    """

    def __init__(
        self,
        arch: Architecture,
        layout: EdgeLayout,
        answers: Tensor,
        *,
        slots: tuple[Tensor, int] | None,
        neurons: bool,
        rule: Rule,
    ) -> None:
        self.arch, self.layout, self.answers = arch, layout, answers
        self.frozen = rule != "gradient"
        dtype = torch.float64 if arch.dtype == torch.float64 else torch.float32
        count = layout.num_edges
        self.slots = slots
        shape = (count,) if slots is None else (count, slots[1])
        self.edges = torch.zeros(shape, dtype=dtype, device=arch.device)
        self.neurons = self.edges.new_zeros(layout.writers, arch.width) if neurons else None
        self._projected = [_Projected() for _ in arch.blocks]
        self._sums: dict[tuple[str, int], Tensor] = {}

    @property
    def full(self) -> bool:
        """Whether as many points' inputs are kept as may be."""
        return len(self._projected[0].along) >= KEPT_POINTS

    def add(self, run: SharedPass, objective: Objective, scale: float) -> None:
        """One more point, weighted by ``scale``."""
        layers, width = self.layout.layers, self.arch.width
        with torch.enable_grad():
            total = objective(run.outputs).sum() * scale
        targets = [*run.projected, *run.mlp_in, run.final_in]
        if self.neurons is not None:
            targets += run.sent
        grads = list(torch.autograd.grad(total, targets, allow_unused=True, materialize_grads=True))
        while len(grads) > 2 * layers + 1:
            self._sum(("sent", len(grads) - 2 * layers - 2), grads.pop().flatten(0, 1))
        rows = run.stream[-1].reshape(-1, width)[self.answers]
        back = _pull_back(self.arch.final_norm, rows, grads.pop(), self.frozen)
        self._sum(("final", 0), back)
        for block in reversed(self.arch.blocks):  # a gradient goes when it is summed
            at = run.stream[2 * block.index + 1].reshape(-1, width)
            grad = grads.pop().reshape(-1, width)
            self._sum(("mlp", block.index), _pull_back(block.mlp_norm, at, grad, self.frozen))
        for block in reversed(self.arch.blocks):
            with block.loaded():
                self._projected[block.index].add(block, run, grads.pop(), self.frozen)

    def _sum(self, key: tuple[str, int], grad: Tensor) -> None:
        """Adds to the sum over points of one kind of gradients; in float32 where there are two."""
        before = self._sums.get(key)
        self._sums[key] = grad if before is None else wide(before) + wide(grad)

    def contract(self, reference: LMReference, *, last: bool) -> None:
        """Adds what the kept points give, against Deltas; all else too if the ``last`` is there."""
        clean, ablated = reference.clean, reference.ablated_now()
        batch, length, width = clean.mlps[0].shape
        remade = self.arch.partial or not all(block.plain for block in self.arch.blocks)
        most = slice_of_tokens(self.layout.writers * width, partial=remade)
        for tokens in torch.arange(batch * length, device=self.edges.device).split(most):
            self._contract_slice(clean, ablated, tokens, last)
        for kept in self._projected:
            kept.along.clear()

    def _contract_slice(self, clean: Values, ablated: Values, tokens: Tensor, last: bool) -> None:
        """The same for ``tokens [s]``, which follow one another."""
        layout, embeddings = self.layout, self.layout.embeddings
        attention, mlp, final = layout.places()
        delta = self.edges.new_empty(layout.writers, len(tokens), self.arch.width)
        clean.embedding_deltas(ablated, tokens, delta[:embeddings])
        for block in self.arch.blocks:
            i, kept = block.index, self._projected[block.index]
            with block.loaded():
                before = delta[: attention[i].prefix]
                if last:
                    self._add_products(attention[i], kept.linear(block, tokens), before, tokens)
                if kept.along:
                    self._add_radial(attention[i], *kept.radial(block, tokens), before, tokens)
                own = delta[layout.head(i) : layout.mlp(i) + block.shape.mlp]
                clean.block_deltas(ablated, block, tokens, own)
            if last and block.shape.mlp:
                grad = wide(self._sums["mlp", i][None, tokens])
                self._add_products(mlp[i], grad, delta[: mlp[i].prefix], tokens)
        if not last:
            return
        inside = torch.nonzero((self.answers >= tokens[0]) & (self.answers <= tokens[-1]))[:, 0]
        answers = self.answers[inside]
        if len(answers):
            grad = wide(self._sums["final", 0][None, inside])
            self._add_products(final, grad, delta[:, answers - tokens[0]], answers)
        if self.neurons is not None:
            self._add_neurons(delta, tokens, self.neurons)

    def _add_products(self, place: Place, grad: Tensor, delta: Tensor, tokens: Tensor) -> None:
        """Adds ``grad [R, s, D]`` against ``delta [prefix, s, D]``, in float32 at least."""
        if self.slots is None:
            self.edges[place.edges] += (grad.flatten(1) @ delta.flatten(1).T).reshape(-1)
        else:
            self._add_by_slot(place, torch.einsum("rnd,wnd->rwn", grad, delta), tokens)

    def _add_radial(
        self, place: Place, x_hat: Tensor, along: Tensor, delta: Tensor, tokens: Tensor
    ) -> None:
        """Adds ``along [s, K, R]`` times ``x_hat [s, K, D]`` against ``delta [prefix, s, D]``."""
        dots = torch.bmm(x_hat, delta.permute(1, 2, 0))
        if self.slots is None:
            self.edges[place.edges] += (along.flatten(0, 1).T @ dots.flatten(0, 1)).reshape(-1)
        else:
            self._add_by_slot(place, torch.einsum("nkr,nkw->rwn", along, dots), tokens)

    def _add_by_slot(self, place: Place, each: Tensor, tokens: Tensor) -> None:
        """Adds ``each [R, prefix, s]`` to the slots of the tokens."""
        assert self.slots is not None
        self.edges[place.edges].index_add_(1, self.slots[0][tokens], each.flatten(0, 1))

    def _add_neurons(self, delta: Tensor, tokens: Tensor, neurons: Tensor) -> None:
        """Gradients at what each writer group sends, against Delta, neuron by neuron."""
        start = 0
        for i, group in enumerate(self.layout.source_groups()):
            stop = start + len(group)
            neurons[start:stop] += (delta[start:stop] * wide(self._sums["sent", i][tokens])).sum(1)
            start = stop


def _pull_back(norm: Norm | None, x: Tensor, grad: Tensor, frozen: bool) -> Tensor:
    """The gradient ``[n, D]`` at a norm's output, taken to its input ``x [n, D]``."""
    if norm is None:
        return grad
    x_hat, scale = norm.statistics(x.detach())
    out = grad * (norm.gain * scale)
    if norm.centred:
        out = out - out.mean(-1, keepdim=True)
    return out if frozen else out - x_hat * (out * x_hat).mean(-1, keepdim=True)


def attributed(
    layout: EdgeLayout,
    graph: ComputationalGraph,
    reference: LMReference,
    batch: Batch,
    objective: Objective,
    *,
    gates: Tensor | None = None,
    weights: Tensor | None = None,
    by_position: bool = False,
    neurons: bool = False,
    constant: Tensor | None = None,
    rule: Rule = "gradient",
) -> Gradients:
    """Gradients of the objective by edge, node and, where asked for, neuron.

    Args:
        layout, graph: the model's.
        reference: the batch's clean and ablated values.
        batch, objective: what is asked, and the function of outputs that is differentiated.
        gates: ``[K, N]``: the points, a share of the clean message for each node; ``None`` means
            the clean model alone.
        weights: ``[K]``: what each point counts; ``None`` means equally.
        by_position, neurons: whether sums are kept by position (slot), and by neuron too.
        constant: ``[K, N]`` bool: nodes whose messages are put in as constants, which pass no
            gradient on.
        rule: how gradients pass the model's own layers.
    """
    arch, inputs, writers = reference.arch, reference.inputs, layout.writer_nodes()
    gates, constant, shares = gradient_points(gates, weights, constant, graph.num_nodes)
    points = zip(gates[:, writers], constant[:, writers], shares, strict=True)
    sums = Attribution(
        arch,
        layout,
        inputs.answers,
        slots=position_slots(batch, inputs) if by_position else None,
        neurons=neurons,
        rule=rule,
    )
    embed = reference.glue.sent(layout.embeddings)
    with arch.running():
        for number, (gate, is_constant, share) in enumerate(points, start=1):
            embed_gate, inner_gate = gate[: layout.embeddings], gate[layout.embeddings :]
            clean_embed = bool((embed_gate == 1).all())
            sent = embed
            if not clean_embed:
                # Not in half precision, where a gate near 1 would be rounded.
                old, new = wide(reference.ablated_embed), wide(embed)
                sent = old + embed_gate.to(new).view(-1, 1, 1, 1) * (new - old)
            inner_clean, mixed = bool((inner_gate == 1).all()), None
            if not inner_clean or bool(is_constant[layout.embeddings :].any()):
                clean = reference.clean if bool(is_constant.any()) else None
                mixed = MixedMessages(gate, reference.ablated_now(), is_constant, clean)
            run = run_shared(
                arch, layout, reference.glue, inputs, embed=sent, mixed=mixed, rule=rule, grad=True
            )
            if inner_clean and (clean_embed or bool((embed_gate == 0).all())):
                reference.take_over(run.values, clean=clean_embed)
            sums.add(run, objective, share)
            del run  # a pass's graph must not live beside the next one's, or beside Deltas
            if number == len(shares) or sums.full:
                sums.contract(reference, last=number == len(shares))
    edges = sums.edges.cpu()
    total = edges if edges.ndim == 1 else edges.sum(1)
    nodes = torch.zeros(graph.num_nodes, dtype=edges.dtype)
    nodes.index_add_(0, graph.edge_index[0], total)  # a message goes to all its readers
    by_neuron = {}
    if sums.neurons is not None:
        names = [graph.nodes[n].name for n in writers]
        by_neuron = dict(zip(names, sums.neurons.cpu(), strict=True))
    return Gradients(edges, nodes, by_neuron)
