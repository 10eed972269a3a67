"""Retraining, lottery tickets and DropEdge, against training loops in plain PyG."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from support.toy import Toy, ToyExamples
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

import graphprune as gp
from graphprune.adapters import DropEdge, LotteryTickets, retrained
from graphprune.conformance import check_method
from graphprune.tasks import nodes, patterns

N, FEATURES, CLASSES = 12, 4, 3


class Net(torch.nn.Module):
    def __init__(self, conv=pyg.GCNConv, dropout=0.0):
        super().__init__()
        self.first, self.second = conv(FEATURES, 8), conv(8, CLASSES)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x, edge_index):
        x = self.dropout(torch.relu(self.first(x, edge_index)))
        return self.second(x, edge_index)


def a_case(conv=pyg.GCNConv, dropout=0.0, batch_size=256):
    torch.manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(N), torch.arange(N))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    data = Data(
        x=torch.randn(N, FEATURES),
        edge_index=pairs[torch.randperm(len(pairs))[:40]].T.contiguous(),
        y=torch.arange(N) % CLASSES,
    )
    module = Net(conv, dropout).eval()
    task = nodes(data, at=torch.tensor([0, 2, 3, 5, 8, 10]), batch_size=batch_size)
    return module, data, gp.wrap(module, data=data), task


def by_hand(module, data, index, epochs, seed=0):
    """The weights that a user's own loop on the smaller graph leaves."""
    module = copy.deepcopy(module).train()
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=5e-4)
    at = torch.tensor([0, 2, 3, 5, 8, 10])
    for _ in range(epochs):
        out = module(data.x, index)[at]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(out, data.y[at]).backward()
        optimiser.step()
    return module.state_dict()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("conv", [pyg.GCNConv, pyg.GATConv, pyg.SAGEConv])
def test_retraining_is_training_on_the_smaller_graph(conv, dropout):
    module, data, model, task = a_case(conv, dropout)
    before = copy.deepcopy(module.state_dict())
    mask = gp.Random().score(model, task).top(0.6)
    made = retrained(model, task, mask, epochs=12)
    wanted = by_hand(module, data, data.edge_index[:, mask.kept], 12)
    for name, value in made.module.state_dict().items():
        torch.testing.assert_close(value, wanted[name], msg=name)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert not made.module.training
    ours = gp.evaluate(made, task, mask, ablation="delete")["top1_accuracy"]
    own = made.module(data.x, data.edge_index[:, mask.kept]).argmax(1)
    at = torch.tensor([0, 2, 3, 5, 8, 10])
    assert ours == pytest.approx(float((own == data.y)[at].float().mean()))


def test_fresh_weights_are_those_of_reset_parameters():
    module, data, model, task = a_case()
    made = retrained(model, task, epochs=5, afresh=True, seed=4)
    fresh = copy.deepcopy(module)
    torch.manual_seed(4)
    for part in fresh.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    # Drawn with the seed, as the copy's were; nothing else is drawn behind them.
    wanted = by_hand(fresh, data, data.edge_index, 5)
    for name, value in made.module.state_dict().items():
        torch.testing.assert_close(value, wanted[name], msg=name)


def test_patterns_train_side_by_side():
    module, data, model, _ = a_case()
    x = torch.randn(5, N, FEATURES)
    labels, at = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([1, 2, 3, 4, 5])
    task = patterns({"x": x}, labels, positions=at)
    made = retrained(model, task, epochs=3)
    other = copy.deepcopy(module).train()
    optimiser = torch.optim.Adam(other.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(3):
        out = torch.stack([other(x[k], data.edge_index)[at[k]] for k in range(5)])
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(out, labels).backward()
        optimiser.step()
    for name, value in made.module.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name, atol=1e-5, rtol=1e-4)


def test_a_round_of_lottery_tickets_by_hand():
    """Weights and mask trained together by plain PyG: a mask is GraphConv's edge weight."""
    module, data, model, task = a_case(pyg.GraphConv)
    method = LotteryTickets(rate=0.25, least=0.5, epochs=10, afresh=False, price=0.5)
    scores = method.score(model, task).values
    kept = torch.ones(40, dtype=torch.bool)
    at = torch.tensor([0, 2, 3, 5, 8, 10])
    for number in range(3):  # 40, 30, 23 and then 18 edges, fewer than half
        net, mask = copy.deepcopy(module), torch.nn.Parameter(torch.ones(40))
        groups = [
            {"params": list(net.parameters()), "weight_decay": 5e-4},
            {"params": [mask], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.Adam(groups, lr=0.01)
        index = data.edge_index[:, kept]
        for _ in range(10):
            weight = mask[kept]
            hidden = torch.relu(net.first(data.x, index, weight))
            out = net.second(hidden, index, weight)[at]
            loss = torch.nn.functional.cross_entropy(out, data.y[at]) + 0.5 * mask.abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        left = torch.nonzero(kept)[:, 0]
        gone = left[mask.detach()[left].abs().argsort()[: max(1, len(left) // 4)]]
        kept[gone] = False
        assert bool((scores[gone] > number).all())
        assert bool((scores[gone] <= number + 0.25).all())
    assert int(kept.sum()) == 18
    assert bool((scores[kept] > scores[~kept].max()).all())


def test_a_ticket_is_its_rewound_network():
    _, _, model, task = a_case()
    method = LotteryTickets(rate=0.5, least=0.5, epochs=8, seed=3)
    result = method.fit(model, task, size=20)
    made = method.network(model, task, result.mask)
    wanted = retrained(model, task, result.mask, epochs=8, afresh=True, seed=3)
    for one, other in zip(made.module.parameters(), wanted.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dropped_edges_are_drawn_anew_in_every_step(monkeypatch):
    module, _, model, task = a_case()
    counts = []
    first = type(module.first).forward

    def watched(self, x, edge_index, *rest):
        if x.shape[1] == FEATURES and self.training:
            counts.append(edge_index.shape[1])
        return first(self, x, edge_index, *rest)

    monkeypatch.setattr(type(module.first), "forward", watched)
    method = DropEdge(epochs=60)
    mask = method.score(model, task).top(0.7)
    assert mask == gp.Random().score(model, task).top(0.7)
    method.network(model, task, mask)
    assert len(set(counts)) > 5
    assert sum(counts) / len(counts) == pytest.approx(0.7 * 40, abs=1.5)


@pytest.mark.parametrize(
    "method", [LotteryTickets(rate=0.5, least=0.4, epochs=4), DropEdge()], ids=lambda m: m.label
)
def test_they_conform(method):
    _, _, model, task = a_case()
    assert set(check_method(method, model, task).values()) == {"passed"}


def test_bad_input():
    _, data, model, task = a_case()
    soft = gp.EdgeMask(model.graph, torch.full((40,), 0.5))
    with pytest.raises(gp.InputError, match="values between"):
        retrained(model, task, soft)
    with pytest.raises(gp.InputError, match=r"in \[0, 1\), got 1.0"):
        retrained(model, task, drop=1.0)
    with pytest.raises(gp.InputError, match="rate is a share"):
        LotteryTickets(rate=1.0)
    with pytest.raises(gp.UnsupportedModelError, match=r"LotteryTickets trains a copy.*is a Toy"):
        LotteryTickets().score(Toy(), gp.Task(ToyExamples(), "logit_diff"))

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = (
                pyg.GCNConv(FEATURES, CLASSES),
                torch.nn.Parameter(torch.ones(1)),
            )

        def forward(self, x, edge_index):
            return self.scale * self.conv(x, edge_index)

    own = gp.wrap(Own(), data=data)
    retrained(own, task, epochs=1)
    with pytest.raises(gp.InputError, match="nothing that holds scale has it"):
        retrained(own, task, epochs=1, afresh=True)


def test_tied_edges_are_trained_without_both_directions():
    module, data, _, _ = a_case()
    data.edge_index = to_undirected(data.edge_index)
    model = gp.wrap(module, data=data, tie=True)
    task = nodes(data, at=torch.tensor([0, 2, 3, 5, 8, 10]))
    mask = gp.Random().score(model, task).top(0.5)
    pairs = zip(model.graph.edge_names, mask.kept.tolist(), strict=True)
    kept = {frozenset(map(int, name.split("--"))) for name, stays in pairs if stays}
    there = torch.tensor([frozenset(pair) in kept for pair in data.edge_index.T.tolist()])
    made = retrained(model, task, mask, epochs=12)
    wanted = by_hand(module, data, data.edge_index[:, there], 12)
    for name, value in made.module.state_dict().items():
        torch.testing.assert_close(value, wanted[name], msg=name)
    tickets = LotteryTickets(epochs=2, least=0.5).fit(model, task, size=0.5).mask
    assert tickets.graph == model.graph
    assert tickets.num_kept == int(0.5 * model.graph.num_edges)
