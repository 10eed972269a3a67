"""Mask optimisers as published, beside plain torch that does what their authors' code does.

Read for the facts: trainer.py, masks.py and schedules.py of github.com/aryamanarora/
matryoshka-attribution (271901e), edge_pruning_unif.py, MaskSampler.py and EdgeMaskSampler.py of
github.com/maxtli/optimalablation (ac02e85), subnetwork_probing/train.py and hook_points.py of
github.com/ArthurConmy/Automatic-Circuit-Discovery (bc99ace). The loops below are written from the
formulas; they share the model and the numbers drawn with graphprune, nothing else.
"""

import math

import pytest
import torch
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune.search.loop import Moment

pytestmark = pytest.mark.inside

STEPS, EXAMPLES = 15, 6


@pytest.fixture(scope="module")
def case():
    model, task = Toy(seed=3), gp.Task(ToyExamples(EXAMPLES), "logit_diff", batch_size=EXAMPLES)
    batch = next(iter(task.batches(EXAMPLES)))
    return model, task, batch, model.reference(batch)


def gates_of(method, case):
    """The edges' gates after the last step."""
    return method.fit(*case[:2]).values["gates"]


def drawn(shape, step):
    """Uniform numbers as a run of seed 0 draws them."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(step)).clamp(1e-6, 1 - 1e-6)


def divergence(case, mask):
    """The mean KL from the full model's distribution to the circuit's."""
    model, _, batch, reference = case
    full = reference.full.log_softmax(-1)
    found = model.run(batch, mask, reference).log_softmax(-1)
    return (full.exp() * (full - found)).sum(-1).mean()


def logit_difference(case, mask):
    model, _, batch, reference = case
    outputs = model.run(batch, mask, reference)
    answer = outputs.gather(-1, batch.answer)
    return (answer - outputs.gather(-1, batch.distractor)).mean()


@pytest.mark.parametrize(
    ("variant", "rate"), [("paper", 0.05), ("paper-sgd", 3.0), ("paper-uniform", 0.05)]
)
def test_matryoshka_attribution(case, variant, rate):
    """The derivative of tau, which bisection has none of, is by the implicit function theorem."""
    edges, temperature = case[0].graph.num_edges, 0.5
    scores = torch.zeros(edges, dtype=torch.float64)
    first, second = torch.zeros_like(scores), torch.zeros_like(scores)
    for step in range(STEPS):
        u = float(drawn((1,), step))
        most = edges - 0.5
        k = 1 + u * (most - 1) if variant == "paper-uniform" else math.exp(u * math.log(most))
        low, high = scores.min() - 20, scores.max() + 20
        for _ in range(80):
            tau = (low + high) / 2
            more = torch.sigmoid((scores - tau) / temperature).sum() > k
            low, high = (tau, high) if more else (low, tau)
        mask = torch.sigmoid((scores - tau) / temperature)
        leaf = mask.float().requires_grad_(True)
        (by_mask,) = torch.autograd.grad(-logit_difference(case, leaf), leaf)
        slope = mask * (1 - mask) / temperature
        gradient = slope * (by_mask - (slope * by_mask).sum() / slope.sum())
        if variant == "paper-sgd":
            scores = scores - rate * gradient
            continue
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        n = step + 1
        scores = scores - rate * (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)).sqrt() + 1e-8)
    method = gp.MatryoshkaPruning(variant=variant, size=4, steps=STEPS, batch_size=EXAMPLES)
    found = gates_of(method, case)
    assert torch.allclose(found.double(), scores, atol=2e-3 * float(scores.abs().max()))
    assert float(scores.abs().max()) > 0.1


@pytest.fixture
def single():
    """One example, so that masks drawn for each example need no order of examples."""
    model, task = Toy(seed=3), gp.Task(ToyExamples(1), "logit_diff", batch_size=1)
    batch = next(iter(task.batches(1)))
    return model, task, batch, model.reference(batch)


def alive(open_edges, graph):
    """The open edges on a path from the input to the output."""
    ends = graph.edge_index.T.tolist()
    down, up = set(graph.input_nodes), set(graph.output_nodes)
    for _ in ends:
        for number, (source, target) in enumerate(ends):
            if open_edges[number]:
                down |= {target} if source in down else set()
                up |= {source} if target in up else set()
    return torch.tensor(
        [bool(o) and s in down and t in up for o, (s, t) in zip(open_edges, ends, strict=True)]
    )


def test_uniform_gradient_sampling(single):
    graph = single[0].graph
    edges, samples, price = graph.num_edges, 12, 1e-3
    inner = [n for n in range(graph.num_nodes)
             if n not in {*graph.input_nodes, *graph.output_nodes}]  # fmt: skip
    kinds = [(s in inner, t in inner) for s, t in graph.edge_index.T.tolist()]
    groups = {
        kind: torch.ones(kinds.count(kind), requires_grad=True) for kind in sorted(set(kinds))
    }
    places = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in groups}
    optimiser = torch.optim.AdamW(
        list(groups.values()), lr=0.05 / 5, betas=(0.9, 0.995), weight_decay=0
    )
    for step in range(STEPS):
        theta = torch.zeros(edges)
        for kind, values in groups.items():
            theta = theta.index_put((torch.tensor(places[kind]),), values)
        u = drawn((samples, 1, edges), step)
        p = theta.sigmoid()
        window = (p * (1 - p)).detach()
        moved = window * p + (1 - window) * p.detach()
        mask = ((moved - u) / window + 0.5).clamp(0, 1)
        fractional = ((mask > 1e-3) & (mask < 1 - 1e-3)).sum((0, 1))
        weight = torch.where(fractional > 0, samples / fractional.clamp(min=1), 0)
        mask = weight * mask + (1 - weight) * mask.detach()
        kept = [alive(row > 0, graph) for row in mask.detach().reshape(-1, edges)]
        mask = mask * torch.stack(kept).view_as(mask)
        load = [sum(p[e] for e, ends in enumerate(graph.edge_index.T.tolist()) if n in ends)
                for n in inner]  # fmt: skip
        heads = len(inner)
        nodes = sum(heads / 2 * torch.tanh(2 * one / heads) for one in load)
        loss = divergence(single, mask) + price * p.sum() + min(0.5 * price, 2e-4) * nodes
        optimiser.zero_grad()
        loss.backward()
        for values in groups.values():
            torch.nn.utils.clip_grad_norm_([values], 5.0)
        optimiser.step()
    want = torch.zeros(edges)
    for kind, values in groups.items():
        want[places[kind]] = values.detach()
    method = gp.UniformGradientSampling(
        variant="paper", size=4, steps=STEPS, batch_size=1, penalty=price
    )
    found = gates_of(method, single)
    assert torch.allclose(found, want, atol=2e-5)
    assert float((want - 1).abs().min()) > 0.005


def test_the_gradient_of_a_keep_chance_in_two_thousand_samples():
    """Of a loss a m it is a p (1 - p); the release leaves .2 % of fractional masks uncounted."""
    graph = gp.ComputationalGraph.from_edges([("in", f"out{i}") for i in range(5)])
    a, chances = torch.tensor([2.0, -1.0, 0.5, 3.0, 1.0]), torch.tensor([0.2, 0.4, 0.5, 0.7, 0.9])
    for variant, share in (("default", 1e-3), ("paper", 2e-2)):
        logits = chances.logit().requires_grad_(True)
        method = gp.UGS(variant=variant, size=2, samples=500, drop_dangling=False)
        draw = method.draw({"edges": logits}, graph, Moment(0, 1, 4, (0, 1, 2, 3)))
        assert draw.mask.shape == (500, 4, 5)
        (a * draw.mask).mean((0, 1)).sum().backward()
        assert torch.allclose(logits.grad, a * chances * (1 - chances), rtol=share)


def test_subnetwork_probing(case):
    edges, beta = case[0].graph.num_edges, 2 / 3
    log_alpha = torch.full((edges,), math.log(5.0), requires_grad=True)
    optimiser = torch.optim.Adam([log_alpha], lr=0.001)
    for step in range(STEPS):
        u = drawn((edges,), step)
        s = ((u.log() - (1 - u).log() + log_alpha) / beta).sigmoid()
        mask = (1.2 * s - 0.1).clamp(0, 1)
        open_share = (log_alpha - beta * math.log(0.1 / 1.1)).sigmoid().mean()
        optimiser.zero_grad()
        (divergence(case, mask) + 50 * open_share).backward()
        optimiser.step()
    method = gp.SubnetworkProbing(variant="paper", size=4, steps=STEPS, batch_size=EXAMPLES)
    assert (1.2 * torch.tensor(5 / 6) - 0.1).item() == pytest.approx(0.9)
    assert torch.allclose(gates_of(method, case), log_alpha.detach(), atol=1e-5)


def test_the_published_sequential_ensemble(case):
    """Its scores are the chances that its gates' medians stand for, with the scorer's signs."""
    first = torch.tensor([0.9, -0.8, 0.7, 0.6, -0.5, 0.4, 0.3, 0.2, -0.1])
    scores = gp.EdgeScores(case[0].graph, first)
    pruning = gp.EdgePruning(variant="paper", size=4, steps=STEPS, batch_size=EXAMPLES)
    method = gp.SequentialEnsemble(scores, variant="paper", optimiser=pruning)
    found = method.fit(*case[:2])
    chances = (1.2 * found.values["gates"]).sigmoid()
    assert torch.allclose(found.scores.values, torch.where(first < 0, -chances, chances))
