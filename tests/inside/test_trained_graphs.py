"""Graph networks that are trained when asked for do their tasks, on what they never saw."""

import pytest
import torch

from graphprune.adapters.reference_models import graph_networks as trained

pytestmark = pytest.mark.inside

pytest.importorskip("sklearn")


def test_they_do_their_tasks():
    x, labels = trained.digits()
    network = trained.argnn_digits()
    last = slice(len(x) - trained.TEST_DIGITS, None)
    out = network.read(network(x[last], generator=torch.Generator().manual_seed(0)))
    assert float((out.argmax(-1) == labels[last]).float().mean()) > 0.87
    module, data = trained.karate_gcn()
    told = module(data.x, data.edge_index).argmax(-1) == data.y
    assert float(told[~data.train_mask].float().mean()) > 0.7
    larger = [trained.reachability_graph(60, 1.3, seed) for seed in range(20)]
    reaching = trained.trained_reachability_network()
    right = [float((reaching(g.x, g.edge_index).argmax(-1) == g.y).float().mean()) for g in larger]
    chance = [max(float(g.y.float().mean()), 1 - float(g.y.float().mean())) for g in larger]
    assert sum(right) > sum(chance) + 1
