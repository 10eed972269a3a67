"""Pruning inside the user's own training loop: two lines, and the module as it was afterwards."""

import gc
import itertools
import warnings

import networkx as nx
import numpy as np
import pytest
import torch
from support.toy import Toy, ToyExamples
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, GraphConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import graphprune as gp
from graphprune.adapters import ARGNN

METHODS = ("damp", "preserve", "gap", "magnitude", "gradient", "random")


def a_network(seed=0, update="synchronous"):
    drawn = nx.gnm_random_graph(8, 30, seed=seed, directed=True)
    edges = torch.tensor([e for e in drawn.edges if e[1] > 1]).T
    return ARGNN(edges, 8, inputs=[0, 1], outputs=[6, 7], update=update, steps=4, seed=seed)


def a_graph(seed=0, directed=True):
    drawn = nx.gnm_random_graph(12, 30, seed=seed, directed=directed)
    index = torch.tensor(list(drawn.edges if directed else drawn.to_directed().edges)).T
    generator = torch.Generator().manual_seed(seed)
    return Data(x=torch.randn(12, 4, generator=generator), edge_index=index)


class Net(nn.Module):
    def __init__(self, conv=GCNConv):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = conv(4, 6), conv(6, 2)

    def forward(self, x, edge_index):
        return self.second(torch.tanh(self.first(x, edge_index)), edge_index)


def train_network(net, optimiser, steps, between=lambda: None):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(5, 2, generator=generator)
        optimiser.zero_grad()
        (net.read(net(x, generator=generator)) - x).square().mean().backward()
        optimiser.step()
        between()


def train_module(net, data, optimiser, steps, between=lambda: None):
    labels = torch.arange(len(data.x)) % 2
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(data.x, data.edge_index), labels).backward()
        optimiser.step()
        between()


def hooks_of(module):
    names = [n for n in vars(module) if n.endswith("hooks")]
    return [len(getattr(part, n, ())) for part in module.modules() for n in names]


# ------------------------------------------------------------------ the recurrent network


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_recurrent_network_ends_with_its_budget(method, wrapped):
    net = a_network()
    edges = len(net.edge_keep)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    pruning = gp.DynamicPruning(method, 0.4, "linear", end=10, interval=2, regrow=0.2)
    with pruning.on(gp.wrap(net) if wrapped else net, optimiser):
        train_network(net, optimiser, 12)
        during = net.edge_keep.clone()
    kept = [count for _, count in pruning.history]
    assert [count for count, _ in pruning.history] == [2, 4, 6, 8, 10]
    assert kept == [
        int(np.ceil(edges - (edges - int(0.4 * edges)) * c / 10)) for c in (2, 4, 6, 8)
    ] + [int(0.4 * edges)]
    assert bool(net.edge_keep.all())  # as it was
    assert net.dense_gradient is None
    assert torch.equal(pruning.mask.kept, during)
    assert not optimiser._optimizer_step_post_hooks
    net.keep(pruning.mask)
    assert torch.equal(net.edge_keep, during)


def test_growth_is_of_the_largest_gradients_and_begins_at_zero():
    """Against the loss with an edge opened a little, one after the other."""
    net = a_network().double()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss():
        return (net.read(net(x)) - 1.0).square().mean()

    pruning = gp.DynamicPruning("magnitude", size=0.5, schedule="linear", end=2, regrow=0.4)
    with pruning.on(net, optimiser):
        loss().backward()
        optimiser.step()
        before, weights = net.edge_keep.clone(), net.edge_weight.detach().clone()
        cut = torch.nonzero(~before)[:, 0]
        slopes = []
        for edge in cut.tolist():
            at = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    net.edge_weight[edge] = step
                    net.edge_keep[edge] = True
                    at.append(float(loss()))
                    net.edge_weight[edge], net.edge_keep[edge] = weights[edge], False
            slopes.append(abs(at[0] - at[1]))
        optimiser.zero_grad()
        loss().backward()
        optimiser.state[net.edge_weight]["momentum_buffer"] = torch.ones_like(net.edge_weight)
        optimiser.step()
        grown = set(torch.nonzero(net.edge_weight == 0)[:, 0].tolist())
        momentum = optimiser.state[net.edge_weight]["momentum_buffer"]
        assert bool((momentum[list(grown)] == 0).all())
    order = cut[torch.tensor(slopes).argsort(descending=True)].tolist()
    assert grown == set(order[: int(0.4 * len(cut))])
    assert grown


@pytest.mark.parametrize("tie", [False, True])
def test_damping_while_training_leaves_less_rotation_than_random_cuts(tie):
    """Sums over three networks; tied pairs are cut together."""
    left = {}
    for method in ("damp", "random"):
        left[method] = 0.0
        for seed in range(3):
            net = a_network(seed)
            optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
            pruning = gp.DynamicPruning(method, 0.6, end=10, laplacian="adjacency")
            with pruning.on(gp.wrap(net, tie=tie), optimiser):
                train_network(net, optimiser, 10)
            kept = net.keep(pruning.mask).edge_keep
            a = np.zeros((8, 8))
            a[tuple(net.edge_index[:, kept].numpy())] = net.edge_weight.detach()[kept].numpy()
            left[method] += np.abs(np.linalg.eigvals(a).imag).sum()
    assert left["random"] > 0.1
    assert left["damp"] < 0.5 * left["random"]


# ------------------------------------------------------------------ any message passing module


@pytest.mark.parametrize("conv", [GCNConv, GATConv, GraphConv])
@pytest.mark.parametrize("directed", [True, False])
def test_any_module_trains_as_on_the_smaller_graph(conv, directed):
    """What the module gives inside the block is plain PyG's on the edges that are kept."""
    data, net = a_graph(directed=directed), Net(conv)
    before = hooks_of(net)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    pruning = gp.DynamicPruning("gradient", 0.5, "linear", end=6, regrow=0.2)
    plain = Net(conv)
    with pruning.on(net, optimiser, data=data):
        train_module(net, data, optimiser, 8)
        small = pruning.mask.apply(data)
        net.eval()
        inside = net(data.x, data.edge_index).detach()
    assert hooks_of(net) == before
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(inside, plain(small.x, small.edge_index).detach())
    torch.testing.assert_close(net(data.x, data.edge_index), plain(data.x, data.edge_index))
    assert pruning.mask.num_kept == int(0.5 * pruning.mask.graph.num_edges)
    assert small.is_directed() == directed


def test_gradients_of_cut_messages_are_those_of_opening_them():
    data, net = a_graph(), Net(GraphConv).double()
    data.x = data.x.double()
    labels = torch.arange(12) % 2
    kept = torch.arange(data.num_edges) % 2 == 0

    def by_weight(weight):
        hidden = torch.tanh(net.first(data.x, data.edge_index, weight))
        return nn.functional.cross_entropy(net.second(hidden, data.edge_index, weight), labels)

    with gp.wrap(net, data=data).cutting() as edges:
        edges.keep(kept, torch.zeros_like(kept))
        nn.functional.cross_entropy(net(data.x, data.edge_index), labels).backward()
        found = edges.gradients()
    weight = kept.double().requires_grad_(True)
    (want,) = torch.autograd.grad(by_weight(weight), weight)
    assert bool(want[~kept].any())
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_every_criterion_prunes_a_module_of_layers(method):
    data, net = a_graph(), Net()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    pruning = gp.DynamicPruning(method, 12, end=4, seed=1)
    with pruning.on(net, optimiser, data=data):
        train_module(net, data, optimiser, 4)
    assert pruning.mask.num_kept == 12


def test_a_rule_that_cuts_less_than_asked_says_so(caplog):
    """One way only: no star turns, so the local rule finds nothing to cut."""
    index = torch.tensor([[0, 0, 1, 1, 2], [1, 2, 2, 3, 3]])
    data, net = Data(x=torch.randn(4, 4), edge_index=index), Net()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    pruning = gp.DynamicPruning("local", 2, end=4)
    with pruning.on(net, optimiser, data=data):
        train_module(net, data, optimiser, 4)
    assert pruning.mask.num_kept == 5
    assert "5 of 5 edges are kept, 2 were asked for" in caplog.text


def test_epochs_are_counted_by_hand():
    data, net = a_graph(), Net()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    pruning = gp.DynamicPruning("magnitude", 10, every="epoch", end=3)
    with pruning.on(net, optimiser, data=data):
        for _ in range(3):
            train_module(net, data, optimiser, 4)
            pruning.step()
    assert [count for count, _ in pruning.history] == [1, 2, 3]
    assert pruning.mask.num_kept == 10


def failing(pruning, train, *place, **options):
    with pruning.on(*place, **options):
        train()
        raise ZeroDivisionError


def test_a_failure_inside_leaves_the_module_as_it_was():
    data, net = a_graph(), Net()
    before, own = hooks_of(net), a_network()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    pruning = gp.DynamicPruning("magnitude", 10, end=3)
    with pytest.raises(ZeroDivisionError):
        failing(pruning, lambda: train_module(net, data, optimiser, 2), net, optimiser, data=data)
    assert hooks_of(net) == before
    assert not optimiser._optimizer_step_post_hooks
    with pytest.raises(ZeroDivisionError):
        failing(gp.DynamicPruning("damp", end=3), lambda: own.edge_keep.fill_(False), own)
    assert bool(own.edge_keep.all())


def test_a_module_on_another_graph_is_refused():
    data, net = a_graph(), Net()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    pruning = gp.DynamicPruning("magnitude", 10, end=3)
    other = a_graph(1)
    with pytest.raises(gp.UnsupportedModelError, match="edges"):
        failing(pruning, lambda: train_module(net, other, optimiser, 1), net, optimiser, data=data)
    assert hooks_of(net) == hooks_of(Net())
    with pytest.raises(gp.InputError, match="needs the graph"):
        gp.DynamicPruning("magnitude").on(net, optimiser).__enter__()


# ------------------------------------------------------------------ other models


def test_any_masked_model_runs_under_the_mask():
    model, task = Toy(seed=3), gp.Task(ToyExamples(6), "logit_diff", batch_size=6)
    (batch,) = task.batches()
    reference = model.reference(batch)
    pruning = gp.DynamicPruning("gradient", 4, "linear", end=5)
    with pruning.on(model):
        for _ in range(5):
            outputs = model.run(batch, pruning.values, reference)
            (-task.metric(outputs, batch, reference.full).sum()).backward()
            pruning.step()
    assert pruning.mask.num_kept == 4
    blind = gp.DynamicPruning("magnitude", 4, end=2)
    with blind.on(model), pytest.raises(gp.InputError, match="no weights to judge them by"):
        blind.step()


# ------------------------------------------------------------------ what went on


def test_a_record_has_edges_rotation_time_and_the_users_figures(tmp_path):
    net = a_network()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    seen = itertools.count()
    pruning = gp.DynamicPruning("damp", 0.5, "linear", end=4)
    with pruning.on(net, optimiser, record=lambda: {"accuracy": next(seen)}):
        train_network(net, optimiser, 4)
        last = net.edge_weight.detach() * net.edge_keep
    frame = pruning.to_frame()
    assert list(frame.columns) == ["count", "kept", "rotation", "seconds", "accuracy"]
    assert frame["count"].tolist() == [0, 1, 2, 3, 4]
    assert frame["accuracy"].tolist() == [0, 1, 2, 3, 4]
    assert frame["kept"].tolist() == [len(net.edge_keep), *(kept for _, kept in pruning.history)]
    assert frame["seconds"].is_monotonic_increasing
    a = np.zeros((8, 8))
    a[tuple(net.edge_index.numpy())] = last.numpy()
    values = np.linalg.eigvals(np.diag(a.sum(1)) - a)
    whole = frame["rotation"].iloc[-1]
    assert whole == pytest.approx(np.abs(values.imag).sum(), abs=1e-4) or whole == pytest.approx(
        np.abs(values.imag).sum() / 2, abs=1e-4
    )
    path = tmp_path / "training.png"
    figure = pruning.plot(path)
    assert path.stat().st_size > 0
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "edges kept", "rotation", "seconds", "accuracy",
    ]  # fmt: skip
    with pytest.raises(gp.InputError, match="nothing was recorded"):
        gp.DynamicPruning("damp").to_frame()


def test_a_run_goes_on_where_it_stood():
    runs = []
    for stops in ((8,), (5, 3)):
        net = a_network()
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        state = None
        for steps in stops:
            pruning = gp.DynamicPruning("magnitude", 0.5, end=8)
            with warnings.catch_warnings(), pruning.on(net, optimiser):
                if state is not None:
                    pruning.load_state_dict(state)
                for _ in range(steps):
                    optimiser.zero_grad()
                    net.read(net(torch.ones(3, 2))).square().mean().backward()
                    optimiser.step()
                state = pruning.state_dict()
        runs.append((pruning.mask.values, net.edge_weight.detach()))
        assert [count for count, _ in pruning.history] == list(range(1, 9))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


class NormsFirst(nn.Module):
    """Loops and weights made once for all layers, before any layer is called."""

    def __init__(self, layers=2):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = GCNConv(4, 4, normalize=False), nn.Linear(4, 2)
        self.layers = layers

    def forward(self, x, edge_index):
        edge_index, weight = gcn_norm(edge_index, num_nodes=len(x), add_self_loops=True)
        for _ in range(self.layers):
            x = torch.tanh(self.conv(x, edge_index, weight))
        return self.out(x)


@pytest.mark.parametrize("layers", [2, 60])
@pytest.mark.parametrize("given", ["itself", "a copy"])
def test_what_a_module_makes_of_the_edges_first_is_cut_too(layers, given):
    """Degrees too, and in many layers: outputs are plain PyG's on the smaller graph."""
    data, net = a_graph(), NormsFirst(layers)
    index = data.edge_index if given == "itself" else data.edge_index.clone()
    pruning = gp.DynamicPruning("random", 12, end=1, interval=1)
    with pruning.on(net, data=data):
        net(data.x, index)
        pruning.step()
        cut = net(data.x, index).detach()
    assert pruning.mask.num_kept == 12
    small = data.edge_index[:, pruning.mask.kept]
    torch.testing.assert_close(cut, net(data.x, small).detach())
    assert not torch.allclose(cut, net(data.x, data.edge_index).detach())


def test_a_module_may_be_called_by_its_parts_for_long():
    """As in link prediction, where ``encode`` is called and not the module itself."""
    data, net = a_graph(), Net()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    labels = torch.arange(len(data.x)) % 2
    pruning = gp.DynamicPruning("magnitude", 12, end=300, interval=10, regrow=0.1)
    held = []
    with pruning.on(net, optimiser, data=data):
        for number in range(300):
            optimiser.zero_grad()
            hidden = torch.tanh(net.first(data.x, data.edge_index))
            nn.functional.cross_entropy(net.second(hidden, data.edge_index), labels).backward()
            optimiser.step()
            if number in (149, 299):
                gc.collect()
                held.append(sum(type(one) is torch.Tensor for one in gc.get_objects()))
    assert pruning.mask.num_kept == 12
    assert held[1] <= held[0] + 600  # 300 more calls of two layers keep no tensors each
