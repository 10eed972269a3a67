"""Learned constants in place of messages: where they start, that they learn, when they cannot."""

import pytest
import torch
import torch_geometric.nn as pyg
from support.hetero import FIRST, LABELS, MAKERS, NODES, RELATIONS, C, F, Transformer, a_graph
from torch_geometric.data import Data

import graphprune as gp
from graphprune.tasks import nodes, patterns

N = 9


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = pyg.GCNConv(F, 6), pyg.GCNConv(6, C)

    def forward(self, x, edge_index):
        return self.second(torch.tanh(self.first(x, edge_index)), edge_index)


def plain(means=None):
    torch.manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(N), torch.arange(N))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]][torch.randperm(N * (N - 1))[:20]]
    data = Data(x=torch.randn(N, F, dtype=torch.float64), edge_index=pairs.T.contiguous())
    model = gp.wrap(Net().double(), data=data, means=means)
    x = torch.randn(12, N, F, dtype=torch.float64)
    return model, data, patterns({"x": x}, torch.arange(12) % C, positions=torch.arange(12) % N)


def hetero(means=None):
    torch.manual_seed(0)
    data = a_graph()
    model = gp.wrap(MAKERS["mixed with GCN"]().double(), data=data, means=means)
    x = {f"{k}.x": torch.randn(12, n, F, dtype=torch.float64) for k, n in NODES.items()}
    at = FIRST + torch.arange(12) % NODES["paper"]
    return model, data, patterns(x, torch.arange(12) % C, positions=at)


@pytest.mark.parametrize("make", [plain, hetero])
@pytest.mark.parametrize("means", ["edge", "type"])
def test_constants_start_at_the_mean_and_have_gradients(make, means):
    model, _, task = make(means)
    (batch,) = task.batches()
    mean = model.mean_ablation([batch])
    learned = model.learned_ablation(mean)
    mask = torch.rand(model.graph.num_edges, dtype=torch.float64)
    want = model.run(batch, mask, model.reference(batch, mean))
    reference = model.reference(batch, learned)
    torch.testing.assert_close(model.run(batch, mask, reference), want)
    rows = {len(value) for value in learned.parameters}
    assert rows == {1} if means == "type" else max(rows) > 1
    gradients = torch.autograd.grad(
        model.run(batch, mask, reference).square().sum(), learned.parameters, allow_unused=True
    )
    assert sum(gradient is not None for gradient in gradients) > len(gradients) / 2
    for number, gradient in enumerate(gradients):
        if gradient is None:  # messages of the last layer that no paper reads
            continue
        value = learned.parameters[number]
        step = torch.zeros_like(value)
        step.view(-1)[0] = 1e-5
        with torch.no_grad():
            value += step
            ahead = model.run(batch, mask, reference).square().sum()
            value -= 2 * step
            behind = model.run(batch, mask, reference).square().sum()
            value += step
        slope = float((ahead - behind) / 2e-5)
        assert float(gradient.view(-1)[0]) == pytest.approx(slope, rel=1e-4, abs=1e-7)
    zero = model.learned_ablation(gp.Ablation("zero"))
    want = model.run(batch, mask, model.reference(batch, gp.Ablation("zero")))
    torch.testing.assert_close(model.run(batch, mask, model.reference(batch, zero)).detach(), want)
    assert [v.shape for v in zero.parameters] == [v.shape for v in learned.parameters]


def test_a_constant_learns_the_value_that_is_best():
    """All edges cut, squared error: the constants must reach what least squares says."""
    model, _, task = plain("type")
    (batch,) = task.batches()
    learned = model.learned_ablation(gp.Ablation("zero"))
    reference = model.reference(batch, learned)
    none = torch.zeros(model.graph.num_edges, dtype=torch.float64)
    last = learned.parameters[1]  # the second layer is linear in its messages

    def loss():
        return (model.run(batch, none, reference) - reference.full).square().sum()

    def slope_at(flat):
        moved = flat.view_as(last).clone().requires_grad_(True)
        out = model.run(batch, none, _with(model, batch, learned, moved)) - reference.full
        return torch.autograd.grad(out.square().sum(), moved)[0].flatten()

    # Quadratic in the constants: differences of its gradient are its second derivatives.
    start = last.detach().flatten()
    slope = slope_at(start)
    hessian = torch.stack(
        [slope_at(start + one) - slope for one in torch.eye(len(start)).to(start)]
    )
    best = start - torch.linalg.pinv(hessian) @ slope
    with torch.no_grad():
        last.copy_(best.view_as(last))
    floor = float(loss().detach())
    with torch.no_grad():
        last.zero_()
    optimiser = torch.optim.LBFGS([last], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    before = float(loss().detach())
    optimiser.step(closure)
    assert floor < before
    assert float(loss().detach()) == pytest.approx(floor, rel=1e-6)


def _with(model, batch, learned, last):
    return model.reference(batch, gp.Ablation("optimal", (learned.parameters[0], last)))


@pytest.mark.parametrize("make", [plain, hetero])
def test_edge_pruning_learns_them(make):
    model, _, task = make()
    fit = gp.EdgePruning(sparsity=0.6, steps=30, ablation="optimal", batch_size=12).fit(model, task)
    assert fit.mask.num_kept == model.graph.num_edges - int(0.6 * model.graph.num_edges)
    start = gp.methods.resolve_ablation(model, task, "mean").values
    moved = [
        float((a.detach() - b).abs().max()) for a, b in zip(fit.ablation.values, start, strict=True)
    ]
    assert max(moved) > 1e-3
    report = gp.evaluate(model, task, fit.mask, ablation=fit.ablation)
    assert 0 <= report["kl"] < float("inf")
    for parameter in model.module.parameters():
        assert parameter.grad is None


def test_shared_features_make_constants_of_edges_vacuous():
    """One graph, one set of features: a constant could be the very message it replaces."""
    model, data, _ = plain()
    task = nodes(data.x, torch.arange(N) % C)
    with pytest.raises(gp.InputError, match="means='type'"):
        gp.EdgePruning(sparsity=0.5, steps=2, ablation="optimal").prune(model, task)
    model, data, _ = plain("type")
    mask = gp.EdgePruning(sparsity=0.5, steps=4, ablation="optimal").prune(model, task)
    assert mask.num_kept == model.graph.num_edges // 2
    model, data, _ = hetero()  # means are of edge types by themselves
    task = nodes(data, LABELS, node_type="paper")
    fit = gp.EdgePruning(sparsity=0.5, steps=4, ablation="optimal").fit(model, task)
    assert [len(v) for v in fit.ablation.parameters] == [1] * 2 * len(RELATIONS)


def test_what_cannot_be_learned_is_refused():
    model, _, task = plain()
    (batch,) = task.batches()
    with pytest.raises(gp.InputError, match="start from zero or mean ablation, got 'counterf"):
        model.learned_ablation(gp.Ablation())
    other, _, _ = hetero()
    learned = other.learned_ablation(gp.Ablation("zero"))
    mask = torch.ones(model.graph.num_edges)
    with pytest.raises(gp.InputError, match="optimal messages were made by another model"):
        model.run(batch, mask, model.reference(batch, learned))
    merged = gp.wrap(Transformer().double(), data=a_graph())
    with pytest.raises(gp.UnsupportedModelError, match="no optimal ablation here"):
        merged.learned_ablation(gp.Ablation("zero"))
