"""PyG's explainers as scorers, against PyG's own Explainer called by hand."""

import copy
import sys

import pytest
import torch
import torch_geometric.explain as pyg_explain
import torch_geometric.nn as pyg
from support.hetero import LABELS, RELATIONS, Layers, a_graph, bipartite
from support.toy import Toy, ToyExamples
from torch_geometric.data import Batch as Graphs
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

import graphprune as gp
from graphprune.adapters.gnn import (
    ARGNN,
    AttentionExplainer,
    CaptumExplainer,
    GNNExplainer,
    PGExplainer,
)
from graphprune.conformance import check_method
from graphprune.tasks import graphs, nodes, patterns

N, FEATURES, CLASSES = 9, 5, 3


class Net(torch.nn.Module):
    def __init__(self, conv=pyg.GCNConv, pooled=False):
        super().__init__()
        self.first, self.second = conv(FEATURES, 8), conv(8, CLASSES)
        self.pooled = pooled

    def forward(self, x, edge_index, batch=None):
        out = self.second(torch.relu(self.first(x, edge_index)), edge_index)
        return pyg.global_mean_pool(out, batch) if self.pooled else out


def a_plain_graph(seed=0, edges=24):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.cartesian_prod(torch.arange(N), torch.arange(N))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    index = pairs[torch.randperm(len(pairs), generator=generator)[:edges]].T.contiguous()
    return Data(x=torch.randn(N, FEATURES, generator=generator), edge_index=index)


def a_net(conv=pyg.GCNConv, pooled=False):
    torch.manual_seed(1)
    return Net(conv, pooled).eval()


def a_case(conv=pyg.GCNConv):
    data, module = a_plain_graph(), a_net(conv)
    at = torch.tensor([4, 0, 7])
    return module, data, gp.wrap(module, data=data), nodes(data.x, torch.arange(N) % CLASSES, at=at)


def by_hand(module, algorithm, kind="phenomenon", level="node"):
    return pyg_explain.Explainer(
        model=module,
        algorithm=algorithm,
        explanation_type=kind,
        edge_mask_type="object",
        model_config={
            "mode": "multiclass_classification",
            "task_level": level,
            "return_type": "raw",
        },
    )


@pytest.mark.parametrize("target", ["prediction", "answer"])
def test_gnn_explainer_is_pygs(target):
    module, data, model, task = a_case()
    ours = GNNExplainer(epochs=15, lr=0.05, seed=3, target=target)
    answers = torch.arange(N) % CLASSES
    if target == "prediction":
        answers = module(data.x, data.edge_index).argmax(-1)
    masks = []
    for node in (4, 0, 7):
        explain = by_hand(a_net(), pyg_explain.GNNExplainer(15, 0.05))
        torch.manual_seed(3)
        masks.append(explain(data.x, data.edge_index, target=answers, index=node).edge_mask)
    every = list(ours.explanations(model, task))
    for one, mask in zip(every, masks, strict=True):
        assert torch.equal(one.values, mask)
    assert any(float(mask.std()) > 0.05 for mask in masks)
    torch.testing.assert_close(ours.score(model, task).values, torch.stack(masks).mean(0))


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_pg_explainer_is_pygs():
    module, data, model, task = a_case()
    target = module(data.x, data.edge_index).argmax(-1)
    frozen = a_net().requires_grad_(False)
    torch.manual_seed(2)
    explain = by_hand(frozen, pyg_explain.PGExplainer(4, 0.01))
    for epoch in range(4):
        for node in (4, 0, 7):
            explain.algorithm.train(
                epoch, frozen, data.x, data.edge_index, target=target, index=torch.tensor([node])
            )
    wanted = [
        explain(data.x, data.edge_index, target=target, index=node).edge_mask for node in (4, 0, 7)
    ]
    every = PGExplainer(epochs=4, lr=0.01, seed=2).explanations(model, task)
    for one, mask in zip(every, wanted, strict=True):
        torch.testing.assert_close(one.values, mask.detach())


def test_attention_is_pygs_and_the_layers_own():
    module, data, model, task = a_case(pyg.GATConv)
    explain = by_hand(a_net(pyg.GATConv), pyg_explain.AttentionExplainer("mean"), "model")
    every = list(AttentionExplainer(reduce="mean").explanations(model, task))
    for one, node in zip(every, (4, 0, 7), strict=True):
        mask = explain(data.x, data.edge_index, index=node).edge_mask
        torch.testing.assert_close(one.values, mask.detach())
    states = torch.relu(module.first(data.x, data.edge_index))
    _, (_, first) = module.first(data.x, data.edge_index, return_attention_weights=True)
    _, (_, second) = module.second(states, data.edge_index, return_attention_weights=True)
    edges = data.num_edges
    coefficients = torch.cat([first[:edges], second[:edges]], 1).mean(1)
    seen = every[0].values > 0
    assert bool(seen.any())
    torch.testing.assert_close(every[0].values[seen], coefficients.detach()[seen])


def test_captum_integrates_gradients_of_a_mask():
    pytest.importorskip("captum")
    module, data, model, task = a_case()
    explain = by_hand(a_net(), pyg_explain.CaptumExplainer("IntegratedGradients"))
    target = module(data.x, data.edge_index).argmax(-1)
    for one, node in zip(CaptumExplainer().explanations(model, task), (4, 0, 7), strict=True):
        mask = explain(data.x, data.edge_index, target=target, index=node).edge_mask
        torch.testing.assert_close(one.values, mask.detach())

    def predicted(outputs, batch):
        return outputs.gather(1, target[batch.positions][:, None])[:, 0]

    predicted.higher_is_better = True
    same = gp.Task(task.examples, predicted)
    ours = gp.IntegratedMaskGradient(steps=50, ablation="zero").score(model, same)
    torch.testing.assert_close(
        CaptumExplainer().score(model, task).values, ours.values, atol=5e-3, rtol=0.02
    )


def test_captum_missing_is_said(monkeypatch):
    _, _, model, task = a_case()
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(gp.MissingExtraError, match="pip install captum"):
        CaptumExplainer().score(model, task)


def test_graphs_of_a_batch_are_explained_by_their_own_edges():
    singles = [a_plain_graph(seed, edges=16 + seed) for seed in range(3)]
    data, module = Graphs.from_data_list(singles), a_net(pooled=True)
    model = gp.wrap(module, data=data)
    task = graphs(torch.tensor([0, 1, 2]))
    own = data.batch[data.edge_index[0]]
    for method in (GNNExplainer(epochs=5), PGExplainer(epochs=2)):
        for number, one in enumerate(method.explanations(model, task)):
            assert bool((one.values[own != number] == 0).all()), method.label
            assert bool((one.values[own == number] > 0).any()), method.label


def test_patterns_have_explanations_of_their_own():
    data, module = a_plain_graph(), a_net()
    model = gp.wrap(module, data=data)
    x = torch.randn(3, N, FEATURES, generator=torch.Generator().manual_seed(5))
    at = torch.tensor([1, 1, 2])
    task = patterns({"x": x}, torch.tensor([0, 1, 2]), positions=at, batch_size=2)
    for number, one in enumerate(GNNExplainer(epochs=5).explanations(model, task)):
        target = module(x[number], data.edge_index).argmax(-1)
        explain = by_hand(a_net(), pyg_explain.GNNExplainer(5))
        torch.manual_seed(0)
        made = explain(x[number], data.edge_index, target=target, index=int(at[number]))
        torch.testing.assert_close(one.values, made.edge_mask)


def test_heterogeneous_graphs():
    """By hand, relation after relation; two relations have the very same edges."""
    torch.manual_seed(0)
    module = Layers(bipartite(lambda a, b: pyg.GraphConv((a, a), b))).double().eval()
    data = a_graph()
    model = gp.wrap(module, data=data)
    task = nodes(data, LABELS, node_type="paper", at=torch.tensor([1, 6]))
    target = module(data.x_dict, data.edge_index_dict).argmax(-1).detach()
    every = list(GNNExplainer(epochs=4).explanations(model, task))
    for one, paper in zip(every, (1, 6), strict=True):
        torch.manual_seed(0)
        explain = by_hand(copy.deepcopy(module), pyg_explain.GNNExplainer(4))
        made = explain(data.x_dict, data.edge_index_dict, target=target, index=paper)
        masks = made.collect("edge_mask")
        wanted = torch.cat([masks[relation] for relation in RELATIONS])
        torch.testing.assert_close(one.values, wanted.float())
    with pytest.raises(gp.UnsupportedModelError, match=r"PGExplainer.*heterogeneous.*GNNExplainer"):
        PGExplainer().score(model, task)


@pytest.mark.parametrize(
    ("method", "conv"),
    [
        (GNNExplainer(epochs=3), pyg.GCNConv),
        (PGExplainer(epochs=2), pyg.GCNConv),
        (AttentionExplainer(), pyg.GATConv),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_they_conform(method, conv):
    _, _, model, task = a_case(conv)
    assert set(check_method(method, model, task).values()) == {"passed"}


def test_a_module_that_pyg_explained_before_is_explained_too():
    """PyG leaves a parameter behind, through which a second explanation would have no gradient."""
    module, data, model, task = a_case()
    before = GNNExplainer(epochs=3).score(model, task).values
    by_hand(module, pyg_explain.GNNExplainer(2))(
        data.x, data.edge_index, target=torch.zeros(N).long()
    )
    assert "_edge_mask" in module.first._parameters
    assert torch.equal(GNNExplainer(epochs=3).score(model, task).values, before)


def test_what_they_do_not_serve_is_refused():
    _, _, model, task = a_case()
    with pytest.raises(gp.UnsupportedModelError, match=r"refuses this module: .*attention"):
        AttentionExplainer().score(model, task)
    with pytest.raises(gp.UnsupportedModelError, match="PGExplainer refuses"):
        PGExplainer(node_mask_type="object").score(model, task)
    with pytest.raises(gp.InputError, match="unknown target 'labels'"):
        GNNExplainer(target="labels").score(model, task)
    toy = gp.Task(ToyExamples(), "logit_diff")
    with pytest.raises(gp.UnsupportedModelError, match=r"gp.wrap\(module, data=data\).*is a Toy"):
        GNNExplainer().score(Toy(), toy)
    network = gp.wrap(ARGNN([[0, 1], [1, 2]], 3, inputs=[0], outputs=[2]))
    ask = patterns(torch.eye(1), torch.tensor([0]), corrupt=None, classes=2)
    with pytest.raises(gp.UnsupportedModelError, match="is a MaskedARGNN"):
        GNNExplainer().score(network, ask)


def test_tied_edges_have_the_sum_of_both_directions():
    one_way = a_plain_graph()
    data = Data(x=one_way.x, edge_index=to_undirected(one_way.edge_index))
    tied, directed = (gp.wrap(a_net(), data=data, tie=tie) for tie in (True, False))
    task, method = nodes(data.x, torch.arange(N) % CLASSES), GNNExplainer(epochs=5)
    assert tied.graph.num_edges < directed.graph.num_edges == data.num_edges
    each = method.score(directed, task).values
    ends = [tuple(sorted(pair)) for pair in data.edge_index.T.tolist()]
    summed = {pair: float(each[[e == pair for e in ends]].sum()) for pair in ends}
    scores = method.score(tied, task)
    found = {
        tuple(sorted(map(int, name.split("--")))): float(value)
        for name, value in zip(tied.graph.edge_names, scores.values, strict=True)
    }
    assert found == pytest.approx(summed, rel=1e-5)
