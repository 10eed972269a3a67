"""Attribution of one batch: at the clean model, or summed over points where nodes are gated."""

from __future__ import annotations

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph
from graphprune.core.model import Gradients, Objective, as_constant
from graphprune.errors import InputError

from ..describe.architecture import Architecture
from ..describe.layout import EdgeLayout
from ..describe.norms import wide
from ..passes.inputs import position_slots
from ..passes.shared import run_shared
from ..passes.values import LMReference
from .gradients import Attribution
from .relevance import Rule

__all__ = ["attributed"]


def attributed(
    arch: Architecture,
    layout: EdgeLayout,
    graph: ComputationalGraph,
    ours: LMReference,
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
        arch, layout, graph: the model, taken apart.
        ours: the batch's clean and ablated values.
        batch, objective: what is asked, and the function of outputs that is differentiated.
        gates: ``[K, N]``: the points, a share of the clean message for each node; ``None``: the
            clean model alone.
        weights: ``[K]``: what each point counts; ``None``: equally.
        by_position, neurons: whether sums are kept by position (slot), and by neuron too.
        constant: ``[K, N]`` bool: nodes whose messages are put in as constants, which pass no
            gradient on.
        rule: how gradients pass the model's own layers.
    """
    inputs = ours.inputs
    points = _gates(gates, layout, graph.num_nodes)
    held = _held(constant, gates, layout, graph.num_nodes)
    shares = [1.0 / len(points)] * len(points) if weights is None else weights.tolist()
    sums = Attribution(
        arch,
        layout,
        inputs.answers,
        slots=position_slots(batch, inputs) if by_position else None,
        neurons=neurons,
        rule=rule,
    )
    embed = ours.glue.sent(layout.embeddings)
    with arch.running():
        for k, (gate, fixed) in enumerate(zip(points, held, strict=True)):
            outer, inner = gate[: layout.embeddings], gate[layout.embeddings :]
            mixed = embed
            if not bool((outer == 1).all()):
                # Not in half precision, where a gate near 1 would be rounded.
                old, new = wide(ours.ablated_embed), wide(embed)
                mixed = old + outer.to(new).view(-1, 1, 1, 1) * (new - old)
            inputs_alone = bool((inner == 1).all())
            plain = inputs_alone and not bool(fixed[layout.embeddings :].any())
            done = run_shared(
                arch,
                layout,
                mixed,
                ours.unmaskable,
                ours.calls(1),
                inputs.answers,
                inputs.shape,
                gates=None if plain else gate,
                ablated=None if plain else ours.ablated_now(),
                constant=None if plain else fixed,
                clean=ours.clean if bool(fixed.any()) and not plain else None,
                rule=rule,
                grad=True,
            )
            if inputs_alone and (bool((outer == 1).all()) or bool((outer == 0).all())):
                ours.offer(bool((outer == 1).all()), done.values)
            last = k == len(points) - 1
            delta = ours.clean.deltas(ours.ablated_now(), arch) if last else None
            sums.add(done, objective, shares[k], delta)
            del done, delta  # a pass's graph must not live beside the next one's
    numbers = layout.writer_nodes()
    edges = sums.edges.cpu()
    total = edges if edges.ndim == 1 else edges.sum(1)
    nodes = torch.zeros(graph.num_nodes, dtype=edges.dtype)
    nodes.index_add_(0, graph.edge_index[0], total)  # a message goes to all its readers
    named = {}
    if sums.neurons is not None:
        single = sums.neurons.cpu()
        named = {graph.nodes[n].name: single[w] for w, n in enumerate(numbers)}
    return Gradients(edges, nodes, named)


def _gates(gates: Tensor | None, layout: EdgeLayout, nodes: int) -> Tensor:
    """Points ``[K, W]`` over writers from points ``[K, N]`` over nodes."""
    if gates is None:
        return torch.ones(1, layout.writers)
    if gates.ndim != 2 or gates.shape[1] != nodes:
        raise InputError(f"gates need the shape [K, {nodes}], got {list(gates.shape)}")
    return gates[:, layout.writer_nodes()]


def _held(constant: Tensor | None, gates: Tensor | None, layout: EdgeLayout, nodes: int) -> Tensor:
    """``[K, W]`` bool: the writers whose messages are put in as constants."""
    if gates is None:
        gates = torch.ones(1, nodes)
    return as_constant(constant, gates)[:, layout.writer_nodes()]
