"""Messages of PyG modules: which convolutions have a soft mask, and what is said once."""

import logging

import pytest
import torch
import torch_geometric.nn as pyg
from support.messages import HARD
from torch_geometric.data import Data

import graphprune as gp
from graphprune.adapters.gnn import messages
from graphprune.adapters.gnn.deletion_rules import deletion_rule
from graphprune.tasks import nodes

pytestmark = pytest.mark.inside


@pytest.mark.parametrize(
    "conv",
    [
        pyg.GCNConv(8, 8, improved=True),
        pyg.GATConv(8, 8, edge_dim=2),
        *(make(8, 8) for make in HARD.values()),
    ],
    ids=["improved GCN", "GAT with edge attributes", *HARD],
)
def test_what_depends_on_edges_otherwise_has_no_soft_mask(conv):
    assert deletion_rule(conv) == "none"


def test_a_mean_over_one_shared_input_is_said_to_be_counterfactual(caplog):
    """Once in a process, however often an ablation is resolved."""
    torch.manual_seed(1)
    x, edges = torch.randn(10, 3), torch.randint(10, (2, 40))
    edges = edges[:, edges[0] != edges[1]].unique(dim=1)
    model = gp.wrap(pyg.GCN(3, 6, 2), data=Data(x=x, edge_index=edges))
    task = nodes(x, torch.arange(10) % 3)
    assert task.notes["corrupted inputs"] == "features shuffled over nodes, seed 0"
    messages._say_mean_is_counterfactual.cache_clear()
    with caplog.at_level(logging.WARNING, "graphprune"):
        mean = gp.EAP(ablation="mean").score(model, task).values
        gp.EAP(ablation="mean").score(model, task)
    (told,) = [r.message for r in caplog.records if "is counterfactual" in r.message]
    assert "share one corrupted input" in told
    torch.testing.assert_close(mean, gp.EAP().score(model, task).values)
