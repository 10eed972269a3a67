"""Encoders, vision transformers and encoder-decoders against a slow oracle and the plain module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.residual_models import MODELS, batch, model
from support.residual_oracle import oracle
from torch import Tensor

import graphprune as gp

NAMES = tuple(MODELS)
# T5's norms take their variance in float32, whatever the model is in.
TOLERANCE = {"t5": 3e-5, "mt5": 3e-5, "t5-gated": 3e-5, "modernbert": 1e-5,
             "deberta": 1e-6, "deberta-classes": 1e-6}  # fmt: skip


def plain(module: Any, drawn: gp.Batch, side: str) -> Tensor:
    """The module's own outputs at the answers."""
    inputs = getattr(drawn, side)
    with torch.no_grad():
        out = module(**inputs)
    logits = out.logits if hasattr(out, "logits") else out.image_embeds
    return logits if drawn.positions is None else logits[torch.arange(drawn.size), drawn.positions]


def expected(
    name: str, module: Any, drawn: gp.Batch, masks: Tensor, names: list[str], ablation: str
) -> Tensor:
    """The oracle's outputs, example by example, each under its own mask."""
    rows = []
    for b in range(drawn.size):
        clean = {key: value[b] for key, value in drawn.clean.items()}
        corrupt = {key: value[b] for key, value in drawn.corrupt.items()}
        _, ablated = oracle(name, module, corrupt)
        if ablation == "zero":
            ablated = {node: torch.zeros_like(value) for node, value in ablated.items()}
        logits, _ = oracle(name, module, clean, dict(zip(names, masks[b], strict=True)), ablated)
        rows.append(logits if drawn.positions is None else logits[drawn.positions[b]])
    return torch.stack(rows)


def drawn_masks(edges: int, size: int) -> Tensor:
    """One mask of fractions for each example, with zeros and ones among them."""
    source = torch.Generator().manual_seed(3)
    masks = torch.rand(size, edges, generator=source, dtype=torch.float64)
    masks[masks < 0.2] = 0
    masks[masks > 0.8] = 1
    return masks


@pytest.mark.parametrize("name", NAMES)
def test_masked_runs_are_the_oracles(name: str) -> None:
    module, drawn = model(name), batch(name)
    wrapped = gp.wrap(module)
    graph, tolerance = wrapped.graph, TOLERANCE.get(name, 1e-9)
    masks = drawn_masks(graph.num_edges, drawn.size)
    names = list(graph.edge_names)
    for ablation in ("counterfactual", "zero"):
        reference = wrapped.reference(drawn, gp.Ablation(ablation))
        with torch.no_grad():
            got = wrapped.run(drawn, masks[None], reference)[0]
            want = expected(name, module, drawn, masks, names, ablation)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    ones = torch.ones(graph.num_edges)
    reference = wrapped.reference(drawn)
    for mask, side, end in ((ones, "clean", "full"), (0 * ones, "corrupt", "ablated")):
        want = plain(module, drawn, side)
        torch.testing.assert_close(wrapped.run(drawn, mask, reference), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(getattr(reference, end), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_differences_and_attributions_are_gradients(name: str) -> None:
    wrapped, drawn = gp.wrap(model(name)), batch(name)
    reference = wrapped.reference(drawn)
    masks = 0.3 + 0.4 * drawn_masks(wrapped.graph.num_edges, 1)[0]
    masks.requires_grad_(True)
    value = lambda mask: wrapped.run(drawn, mask, reference).flatten(1)[:, 0].sum()  # noqa: E731
    (gradient,) = torch.autograd.grad(value(masks), masks)
    direction = torch.randn(masks.shape, generator=torch.Generator().manual_seed(4)).double()
    direction /= direction.norm()
    step = 3e-3
    with torch.no_grad():  # of fourth order, with steps that rounding in float32 does not reach
        at = {k: float(value(masks + k * step * direction)) for k in (-2, -1, 1, 2)}
    slope = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)
    assert float(gradient @ direction) == pytest.approx(slope, rel=2e-3, abs=1e-5)

    ones = torch.ones(wrapped.graph.num_edges, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(value(ones), ones)
    first = lambda outputs: outputs.flatten(1)[:, 0]  # noqa: E731
    found = wrapped.edge_gradients(drawn, first, reference)
    torch.testing.assert_close(found.edge, want)
    places = wrapped.edge_gradients(drawn, first, reference, by_position=True, neurons=True)
    torch.testing.assert_close(places.edge.sum(1), want)
    for node, values in places.neurons.items():
        torch.testing.assert_close(values.sum(), found.node[wrapped.graph.node_number[node]])


def constant_scale(norm: Any, x: Tensor) -> Tensor:
    """A norm of which gradients take the scale as a constant."""
    if isinstance(norm, torch.nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    out = x / (x.square().mean(-1, keepdim=True) + eps).sqrt().detach() * norm.weight
    return out if getattr(norm, "bias", None) is None else out + norm.bias


def with_rules(module: Any, name: str) -> Any:
    """The module with RelP's rules written out: ratios of activations, norms, halved gates."""

    def half(x: Tensor) -> Tensor:
        return 0.5 * x + 0.5 * x.detach()

    for part in module.modules():
        kind = type(part).__name__
        if kind.endswith("Norm"):
            part.forward = lambda x, norm=part: constant_scale(norm, x)
        elif type(part).__module__.endswith((".activations", ".activation")):
            act = part.forward
            part.forward = lambda x, act=act: x * (act(x) / x).detach()
        elif kind == "T5DenseGatedActDense":
            part.forward = lambda x, m=part: m.wo(half(m.act(m.wi_0(x)) * m.wi_1(x)))
        elif kind == "ModernBertMLP":

            def gated(x: Tensor, m: Any = part) -> Tensor:
                one, two = m.Wi(x).chunk(2, -1)
                return m.Wo(half(m.act(one) * two))

            part.forward = gated
    return module


@pytest.mark.parametrize("name", ["vit", "bert", "modernbert", "t5-gated", "bart", "clip-vision"])
def test_relevance_is_the_oracles_gradient_under_the_rules(name: str) -> None:
    wrapped, drawn = gp.wrap(model(name)), batch(name, size=2)
    reference = wrapped.reference(drawn)
    first = lambda outputs: outputs.flatten(1)[:, 0]  # noqa: E731
    found = wrapped.relevance_gradients(drawn, first, reference)
    written = with_rules(model(name), name)
    ones = torch.ones(2, wrapped.graph.num_edges, dtype=torch.float64, requires_grad=True)
    names = list(wrapped.graph.edge_names)
    outputs = expected(name, written, drawn, ones, names, "counterfactual")
    (want,) = torch.autograd.grad(first(outputs).sum(), ones)
    tolerance = max(1e-6, TOLERANCE.get(name, 0))
    torch.testing.assert_close(found.edge, want.sum(0), rtol=1e-4, atol=tolerance)
    assert not torch.allclose(found.edge, wrapped.edge_gradients(drawn, first, reference).edge)
    held = wrapped.relevance_gradients(drawn, first, reference, frozen=True).edge
    asks = (wrapped.graph.edge_kind[:, None] == torch.tensor([0, 1])).any(1)
    assert not bool(held[asks].any())
    assert bool(held[~asks].any())


@pytest.mark.parametrize("name", ["bert", "vit", "bart", "modernbert"])
def test_messages_arrive_through_norms_and_add_up(name: str) -> None:
    wrapped, drawn = gp.wrap(model(name)), batch(name)
    graph, clean = wrapped.graph, wrapped.reference(drawn).clean
    places = list(wrapped.messages(drawn))
    edges = torch.cat([place.edges.flatten() for place in places])
    assert edges.sort().values.tolist() == list(range(graph.num_edges))
    # What arrives is the derivative of what is read by a factor on the message, under constant
    # scales: by the plain module, with hooks that scale what a part adds.
    if name != "bert":
        return
    module = with_rules(model(name), name)
    ids = dict(drawn.clean)
    read: dict[str, Tensor] = {}
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    dense = module.bert.encoder.layer[0].output.dense
    plain_dense = dense.forward
    dense.forward = lambda x: factor * plain_dense(x).detach()
    last = module.bert.encoder.layer[1]
    last.intermediate.dense.register_forward_pre_hook(lambda m, args: read.update(x=args[0]))
    module(**ids)
    number = graph.node_number
    place = next(p for p in places if int(graph.edge_index[1, p.edges[0, 0]]) == number["m1"])
    writers = graph.edge_index[0, place.edges[0]].tolist()
    torch.testing.assert_close(place.total, read["x"].detach())
    # Only the way along the stream counts, not that through the next layer's attention.
    x = last.attention.self
    for part in (x.query, x.key, x.value):
        own = part.forward
        part.forward = lambda h, own=own: own(h.detach())
    module(**ids)
    out, at = read["x"], writers.index(number["m0"])
    for b, t, d in ((0, 0, 0), (1, 2, 5), (2, 3, 7)):
        (want,) = torch.autograd.grad(out[b, t, d], factor, retain_graph=True)
        torch.testing.assert_close(place.values[at, b, t, d], want)
    assert clean[0].shape[0] == 1
