"""Uniform gradient sampling: expected gradients by simulation, and the released settings."""

import re

import pytest
import torch
from support.tiny import tiny

import graphprune as gp
from graphprune.search.loop import Moment, Optimisation

pytestmark = pytest.mark.inside

CHANCES = torch.tensor([0.05, 0.2, 0.5, 0.73, 0.9, 0.97, 0.99])
MASKS = 12  # a step: three examples with four masks each
COPIES, DRAWS = 500, 40  # edges with one chance, and steps: 20,000 draws of each


def fan(n):
    """``n`` edges side by side, each of them alive whatever the others are."""
    return gp.ComputationalGraph.from_edges([(f"in{i}", f"out{i}") for i in range(n)])


def expected_gradient(method, nodes=None):
    """``[7]``: the mean gradient by each logit of a loss that is the sum of all gates."""
    graph = fan(COPIES * len(CHANCES))
    logits = CHANCES.logit().repeat(COPIES)
    total = torch.zeros(len(logits))
    for step in range(DRAWS):
        parameters = {"edges": logits.clone().requires_grad_(True)}
        if nodes is not None:
            parameters["nodes"] = torch.full((graph.num_nodes,), nodes).logit()
        draw = method.draw(parameters, graph, Moment(step, DRAWS, 3, (0, 1, 2)))
        assert draw.mask.shape == (4, 3, len(logits))
        draw.mask.mean((0, 1)).sum().backward()
        total += parameters["edges"].grad
    return total.view(COPIES, -1).mean(0) / DRAWS


def method(**settings):
    return gp.UGS(size=3, samples=4, drop_dangling=False, **settings)


def test_the_expected_gradient_is_that_of_the_keep_chance():
    found = expected_gradient(method())
    assert torch.allclose(found / (CHANCES * (1 - CHANCES)), torch.ones(7), atol=0.05), found


def test_the_expected_gradient_through_gates_on_senders():
    found = expected_gradient(method(node_gates=True), nodes=0.7)
    assert torch.allclose(found / (CHANCES * (1 - CHANCES)), torch.full((7,), 0.7), atol=0.05)


def test_the_released_expected_gradient():
    """Short of the unbiased one where few masks of a step are fractional."""
    w = CHANCES * (1 - CHANCES)
    released = w * (1 - (1 - w) ** MASKS)
    found = expected_gradient(method(variant="paper"))
    assert torch.allclose(found / released, torch.ones(7), atol=0.05), found / released
    assert float(released[-1] / w[-1]) < 0.12  # .2 if nothing but rounding told them apart


def test_processes_that_share_a_batch_weigh_all_its_masks():
    """Each has its own examples: their gradients add up to those of one process."""
    graph, some = fan(7), method()
    parts = []
    for rows in ((0, 1, 2), (0, 1), (2,)):
        logits = CHANCES.logit().requires_grad_(True)
        draw = some.draw({"edges": logits}, graph, Moment(5, 9, 3, rows))
        draw.mask.mean(0).sum().backward()
        parts.append(logits.grad)
    assert torch.allclose(parts[0], parts[1] + parts[2])


def test_the_released_settings():
    graph = fan(7)
    paper, ours = gp.UGS(size=3, variant="paper"), gp.UGS(size=3)
    for made, start in ((paper, 0.731), (ours, 0.9), (gp.UGS(size=3, start=0.4), 0.4)):
        first = made.parameters(graph, None)["edges"].sigmoid()
        assert float(first.min()) == pytest.approx(start, abs=1e-4)
    assert gp.UGS(size=3, variant="paper", start=0.9).start == 0.9
    for wrong in ({"variant": "best"}, {"node_penalty": -1.0}, {"start": 1.0}):
        with pytest.raises(gp.InputError):
            gp.UGS(size=3, **wrong)


def ends(name):
    """The release's four tensors: heads, and all the rest, at either end of an edge."""
    source, target = re.fullmatch(r"(\S+)->(\S+)", name).groups()
    return ".h" in source, ".h" in target


def test_gradients_are_cut_by_the_released_groups():
    """Beside torch's own clipping of one tensor for each group."""
    model = gp.wrap(tiny("gpt2"))
    graph = model.graph
    found = {}
    grads = torch.randn(graph.num_edges, generator=torch.Generator().manual_seed(0))
    grads *= torch.where(torch.tensor([ends(name)[1] for name in graph.edge_names]), 3.0, 0.1)
    for variant in ("paper", "default"):
        some = gp.UGS(size=20, variant=variant, samples=1, clip=2.0)
        parameters = some.parameters(graph, None)
        run = object.__new__(Optimisation)
        run.parameters = {"edges": parameters["edges"].requires_grad_(True)}
        run.parameters["edges"].grad = grads.clone()
        draw = some.draw(run.parameters, graph, Moment(0, 1, 2, (0, 1)))
        run._clip(draw, [run.parameters["edges"]])
        found[variant] = run.parameters["edges"].grad
    whole = torch.nn.Parameter(torch.zeros(graph.num_edges))
    whole.grad = grads.clone()
    torch.nn.utils.clip_grad_norm_(whole, 2.0)
    assert torch.allclose(found["default"], whole.grad)
    groups = [ends(name) for name in graph.edge_names]
    assert len(set(groups)) == 4
    for group in set(groups):
        mine = torch.tensor([g == group for g in groups])
        part = torch.nn.Parameter(torch.zeros(int(mine.sum())))
        part.grad = grads[mine].clone()
        torch.nn.utils.clip_grad_norm_(part, 2.0)
        assert torch.allclose(found["paper"][mine], part.grad)


def test_the_released_price_of_nodes():
    """``N / 2 tanh(2 load / N)`` over heads, their load the keep chances of all their edges."""
    model = gp.wrap(tiny("gpt2"))
    graph = model.graph
    some = gp.UGS(size=20, variant="paper", penalty=1e-3, samples=1)
    assert some.node_penalty is None
    logits = torch.randn(graph.num_edges, generator=torch.Generator().manual_seed(0))
    draw = some.draw({"edges": logits}, graph, Moment(0, 1, 1, (0,)))
    p = logits.sigmoid().tolist()
    heads = sorted({n.name for n in graph.nodes if re.fullmatch(r"a\d+\.h\d+", n.name)})
    load = dict.fromkeys(heads, 0.0)
    for name, chance in zip(graph.edge_names, p, strict=True):
        source, target = re.fullmatch(r"(\S+?)->([^<]+)(?:<.>)?", name).groups()
        for end in (source, target):
            if end in load:
                load[end] += chance
    n = len(heads)
    price = sum(n / 2 * torch.tensor(2 * x / n).tanh() for x in load.values())
    assert float(draw.penalty) == pytest.approx(1e-3 * sum(p) + 2e-4 * float(price), rel=1e-5)
    assert float(price) > 0
    free = gp.UGS(size=20, penalty=1e-3, samples=1)
    draw = free.draw({"edges": logits}, graph, Moment(0, 1, 1, (0,)))
    assert float(draw.penalty) == pytest.approx(1e-3 * sum(p), rel=1e-5)
