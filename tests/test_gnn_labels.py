"""Labels and features of graph tasks: what is read, and what is refused."""

import pytest
import torch
from support.gnn_cases import C, N, Plain, Weighted, a_graph, drawn
from torch_geometric.data import Data

import graphprune as gp
from graphprune.tasks import graphs, nodes, patterns

# ------------------------------------------------------------------ labels


def test_labels_are_whole_numbers_where_they_are_asked_for():
    x = torch.eye(5)
    with pytest.raises(gp.InputError, match=r"got 0\.5\. For targets .*gp\.tasks\.regression"):
        nodes(x, torch.tensor([0.0, 0.5, 1.0, 0.0, 1.0]))
    (batch,) = nodes(x, torch.tensor([0.0, 2.0, 1.0, 0.0, 1.0])).batches()
    assert batch.answer[:, 0].tolist() == [0, 2, 1, 0, 1]
    at = torch.tensor([True, True, False, True, False])
    for odd in (torch.tensor([0, 2, -1, 1, -1]), torch.tensor([0, 2, float("nan"), 1, 0.5])):
        (batch,) = nodes(x, odd, at=at).batches()
        assert batch.positions.tolist() == [0, 1, 3]
        assert batch.answer[:, 0].tolist() == [0, 2, 1]
        assert batch.distractor.tolist() == [[1, 2], [0, 1], [0, 2]]
    # Classes of nodes that are not asked for are classes.
    (batch,) = nodes(x, torch.tensor([0, 1, 2, 3, 0]), at=[0]).batches()
    assert batch.distractor.tolist() == [[1, 2, 3]]
    with pytest.raises(gp.InputError, match=r"0 to 2, got -1; at= says which nodes"):
        nodes(x, torch.tensor([0, 2, -1, 1, -1]))
    with pytest.raises(gp.InputError, match=r"got \[5, 1\]: labels\[:, 0\]"):
        nodes(x, torch.zeros(5, 1))
    with pytest.raises(gp.InputError, match="at names nodes 0 to 5"):
        nodes(x, torch.zeros(5), at=[0, 5])
    with pytest.raises(gp.InputError, match=r"at as a mask must be \[5\]"):
        nodes(x, torch.zeros(5), at=torch.ones(4, dtype=torch.bool))
    with pytest.raises(gp.InputError, match="regression"):
        patterns(torch.eye(2), torch.tensor([0.2, 1.0]))
    with pytest.raises(gp.InputError, match="regression"):
        graphs(torch.tensor([0.2, 1.0]))


def test_data_brings_its_features_and_labels():
    data = a_graph(y=torch.arange(N) % C)
    (batch,) = nodes(data, at=[4, 2]).batches()
    assert torch.equal(batch.clean["x"], data.x)
    assert batch.answer[:, 0].tolist() == [1, 2]
    with pytest.raises(gp.InputError, match="labels are missing"):
        nodes(a_graph())
    with pytest.raises(gp.InputError, match="the data has no x to shuffle"):
        nodes(Data(edge_index=data.edge_index, num_nodes=N), data.y)


def test_a_callable_metric_reads_targets_of_its_own():
    data, module = a_graph(), Weighted().double().eval()
    targets = drawn(N, C)

    def closeness(outputs, batch):
        return -(outputs - targets[list(batch.indices)]).square().sum(-1)

    closeness.higher_is_better = True
    task = nodes(data.x, torch.zeros(N), metric=closeness)
    model = gp.wrap(module, data=data)
    found = gp.evaluate(model, task, gp.EdgeMask.full(model.graph), ablation="zero")
    want = -(module(data.x, data.edge_index).detach() - targets).square().sum(-1).mean()
    assert found["closeness"] == pytest.approx(float(want))
    assert (gp.EAP(ablation="zero").score(model, task).values != 0).any()


def test_tasks_that_no_edge_reaches_are_told():
    """The last node receives nothing; beside a node that does, it is asked about as any other."""
    data, module = a_graph(), Plain().double().eval()
    data.edge_index = data.edge_index[:, data.edge_index[1] < N - 1]
    model = gp.wrap(module, data=data)
    alone = nodes(data.x, torch.arange(N) % C, at=[N - 1])
    for method in (gp.EAP(), gp.EAP(ablation="zero"), gp.EdgePruning(size=5, steps=2)):
        with pytest.raises(gp.InputError, match="a node that no edge leads to"):
            method.prune(model, alone) if hasattr(method, "prune") else method.score(model, alone)
    both = nodes(data.x, torch.arange(N) % C, at=[N - 1, 5])
    reaching = data.edge_index[1] == 5
    assert (gp.EAP(ablation="zero").score(model, both).values[reaching] != 0).all()
