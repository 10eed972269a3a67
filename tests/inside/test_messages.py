"""Messages of PyG modules: what is said once."""

import logging

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.data import Data

import graphprune as gp
from graphprune.adapters.gnn import messages
from graphprune.tasks import nodes

pytestmark = pytest.mark.inside


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
