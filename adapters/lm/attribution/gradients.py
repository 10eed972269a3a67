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
``x_hat . g W`` is g against the projection's output without its constant part. A point therefore
costs one number for each projected feature and token, and every large product is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from ..passes.values import LMReference
from .relevance import Rule

__all__ = ["Attribution", "attributed"]


@dataclass(eq=False)
class _Projected:
    """What is kept of the points so far at one attention place.

    ``grad [R, n, dh]`` sums ``g``; ``along`` holds ``(x_hat [n, D], x_hat . g W [R, n, 1])``.
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
                along = (wide(split) * wide(linear)).sum(-1, keepdim=True)
                self.along.append((x_hat, along))
        split = wide(split)  # sums over points stand in float32
        self.grad = split if self.grad is None else self.grad + split

    def finish(self, block: DecoderBlock) -> Tensor:
        """``[R, n, D]``: gradients at each reader's own input, summed over points."""
        assert self.grad is not None
        norm = block.attention_norm
        start, width = 0, block.readers[0].weight.shape[-1]
        out = self.grad.new_empty(*self.grad.shape[:2], width)
        for reader in block.readers:
            weight = wide(reader.weight)
            if norm is not None:
                weight = weight * wide(norm.gain)
                if norm.centred:
                    weight -= weight.mean(-1, keepdim=True)
            stop = start + weight.shape[0]
            torch.bmm(self.grad[start:stop], weight, out=out[start:stop])
            start = stop
        for x_hat, along in self.along:
            out.addcmul_(wide(x_hat), along, value=-1.0 / width)
        return out


def _linear(block: DecoderBlock, norm: Norm, x_hat: Tensor, projected: Tensor) -> Tensor:
    """``[R, n, dh]``: the projections of ``x_hat`` times the gain, constants left out."""
    if block.rounds is None:
        out = projected.reshape(-1, block.rows, block.head_dim).transpose(0, 1)
        return out - _constant(block, norm)
    # The projections are those of rounded inputs, whose gradient is taken as the inputs' own.
    read = x_hat * norm.gain
    return torch.cat([read @ reader.weight.transpose(1, 2) for reader in block.readers])


def _constant(block: DecoderBlock, norm: Norm) -> Tensor:
    """``[R, 1, dh]``: what the projections give at ``x_hat = 0``."""
    parts = []
    for reader in block.readers:
        constant = reader.weight.new_zeros(reader.weight.shape[:2])
        if norm.bias is not None:
            constant = reader.weight @ norm.bias
        parts.append(constant if reader.bias is None else constant + reader.bias)
    return torch.cat(parts)[:, None]


class Attribution:
    """Sums ``Delta . gradient`` over points, for every edge (and every neuron, if asked).

    The contraction with ``delta [W, B, T, D]`` (clean minus ablated) happens once, at the last
    point. Sums over examples, in float32 (float64 for a float64 model).

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
        self._sums: dict[int, Tensor] = {}

    def add(
        self, run: SharedPass, objective: Objective, scale: float, delta: Tensor | None
    ) -> None:
        """One more point, weighted by ``scale``; ``delta`` is given with the last one."""
        layers, width = self.layout.layers, self.arch.width
        with torch.enable_grad():
            total = objective(run.outputs).sum() * scale
        targets = [*run.projected, *run.mlp_in, run.final_in]
        if self.neurons is not None:
            targets += run.sent
        grads = torch.autograd.grad(total, targets, allow_unused=True, materialize_grads=True)
        d_projected, d_mlp, d_final = grads[:layers], grads[layers : 2 * layers], grads[2 * layers]
        attention, mlp, final = self.layout.places()
        rows = run.stream[-1].reshape(-1, width)[self.answers]
        back = _pull_back(self.arch.final_norm, rows, d_final, self.frozen)
        self._one_reader(final, back, delta, self.answers)
        for block in reversed(self.arch.blocks):
            i = block.index
            at = run.stream[2 * i + 1].reshape(-1, width)
            back = _pull_back(block.mlp_norm, at, d_mlp[i].reshape(-1, width), self.frozen)
            self._one_reader(mlp[i], back, delta)
            with block.loaded():
                self._projected[i].add(block, run, d_projected[i], self.frozen)
                if delta is not None:
                    self._contract(attention[i], self._projected[i].finish(block), delta)
                    self._projected[i] = _Projected()
        if self.neurons is not None:
            self._add_neurons(grads[2 * layers + 1 :], delta, self.neurons)

    def _sum(self, key: int, grad: Tensor, last: bool) -> Tensor:
        """The sum over the points so far of the gradients of one ``key``, this one included."""
        before, grad = self._sums.pop(key, None), wide(grad)
        grad = grad if before is None else before + grad
        if not last:
            self._sums[key] = grad
        return grad

    def _one_reader(
        self, place: Place, grad: Tensor, delta: Tensor | None, at: Tensor | None = None
    ) -> None:
        """A place of one reader: gradient ``[n, D]``; ``at``: token numbers, all if ``None``."""
        grad = self._sum(place.edges.start, grad, delta is not None)
        if delta is not None:
            self._contract(place, grad[None], delta, at)

    def _contract(
        self, place: Place, grad: Tensor, delta: Tensor, at: Tensor | None = None
    ) -> None:
        flat = delta.flatten(1, 2)[: place.prefix]
        g, d = wide(grad), wide(flat if at is None else flat[:, at])
        if self.edges.ndim == 1:
            block = g.reshape(place.rows, -1) @ d.reshape(place.prefix, -1).T
            self.edges[place.edges] += block.reshape(-1)
            return
        assert self.slots is not None
        slots = self.slots[0] if at is None else self.slots[0][at]
        each = torch.einsum("rnd,wnd->rwn", g, d).reshape(-1, g.shape[1])
        self.edges[place.edges].index_add_(1, slots, each)

    def _add_neurons(self, grads: Sequence[Tensor], delta: Tensor | None, neurons: Tensor) -> None:
        """Gradients at what each writer group sends, against Delta, neuron by neuron."""
        start, layout = 0, self.layout
        for i, grad in enumerate(grads):
            grad = self._sum(-1 - i, grad, delta is not None)
            count = layout.embeddings if i == 0 else layout.heads if i % 2 else 1
            if delta is not None:
                d, g = wide(delta[start : start + count]), wide(grad)
                neurons[start : start + count] += (d * g).sum((1, 2))
            start += count


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
            last = number == len(shares)
            delta = reference.clean.deltas(reference.ablated_now(), arch) if last else None
            sums.add(run, objective, share, delta)
            del run, delta  # a pass's graph must not live beside the next one's
    edges = sums.edges.cpu()
    total = edges if edges.ndim == 1 else edges.sum(1)
    nodes = torch.zeros(graph.num_nodes, dtype=edges.dtype)
    nodes.index_add_(0, graph.edge_index[0], total)  # a message goes to all its readers
    by_neuron = {}
    if sums.neurons is not None:
        names = [graph.nodes[n].name for n in writers]
        by_neuron = dict(zip(names, sums.neurons.cpu(), strict=True))
    return Gradients(edges, nodes, by_neuron)
