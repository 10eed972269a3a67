"""Small graph networks that learn digits, communities and reachability when first asked for.

Everything here trains on the CPU in seconds to a minute, by seed, and is kept
(:mod:`graphprune.adapters.reference_models.train_once`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, GraphConv

from graphprune.errors import MissingExtraError
from graphprune.util.modes import with_gradients

from ..gnn.argnn import ARGNN
from ..gnn.training import train_bptt
from .train_once import cross_entropy_step, train_once

__all__ = [
    "ReachabilityNetwork",
    "TwoLayerGCN",
    "argnn_digits",
    "digits",
    "karate_gcn",
    "reachability_graph",
    "trained_reachability_network",
]

# -------------------------------------------------------------------- digits


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """``[1797, 64]`` pixels between 0 and 1 and ``[1797]`` classes: scikit-learn's 8 x 8 digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            'the digits come with scikit-learn: pip install "graphprune[gnn]"'
        ) from error
    pixels, classes = map(np.asarray, load_digits(return_X_y=True))
    return torch.from_numpy(pixels).float() / 16.0, torch.from_numpy(classes).long()


TEST_DIGITS = 597  # the last ones, by other writers than most of the first


@with_gradients
def argnn_digits(
    *,
    hidden: int = 60,
    seed: int = 0,
    epochs: int = 30,
    update: str = "bernoulli",
    steps: int = 8,
) -> ARGNN:
    """An asynchronous recurrent network that reads 8 x 8 digits: 64 inputs, hidden, 10 outputs.

    Every pixel feeds every hidden node, hidden nodes feed each other and the outputs. Trained by
    backpropagation through time on the first 1,200 digits (some ten seconds), then kept.
    """
    n = 64 + hidden + 10
    middle, last = range(64, 64 + hidden), range(64 + hidden, n)
    pairs = [(u, v) for u in range(64) for v in middle]
    pairs += [(u, v) for u in middle for v in middle if u != v]
    pairs += [(u, v) for u in middle for v in last]
    network = ARGNN(
        torch.tensor(pairs).T,
        n,
        inputs=range(64),
        outputs=last,
        output_activation="identity",
        bias=True,
        update=update,  # type: ignore[arg-type]
        steps=steps,
        seed=seed,
    )
    x, labels = digits()
    known = len(x) - TEST_DIGITS
    settings = {"hidden": hidden, "seed": seed, "epochs": epochs, "update": update, "steps": steps}

    def train() -> None:
        train_bptt(network, x[:known], labels[:known], epochs=epochs, seed=seed)

    train_once("argnn-digits", settings, network, train)
    network.eval()
    return network


# -------------------------------------------------------------------- nodes of a real graph


class TwoLayerGCN(nn.Module):
    """Two graph convolutions, GCN."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = GCNConv(features, hidden), GCNConv(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """``[N, classes]``."""
        logits: Tensor = self.second(torch.relu(self.first(x, edge_index)), edge_index)
        return logits


@with_gradients
def karate_gcn(seed: int = 0) -> tuple[TwoLayerGCN, Any]:
    """Zachary's karate club (in PyG, both directions of each tie) and a GCN that learned it.

    It was trained on one member of each of the four communities; the others are to be told.
    """
    from torch_geometric.datasets import KarateClub

    data: Any = KarateClub()[0]
    torch.manual_seed(seed)
    module = TwoLayerGCN(data.num_features, 16, 4)

    def train() -> None:
        optimiser = torch.optim.Adam(module.parameters(), lr=0.02, weight_decay=5e-4)
        for _ in range(200):
            out = module(data.x, data.edge_index)[data.train_mask]
            cross_entropy_step(optimiser, out, data.y[data.train_mask])

    train_once("gcn-karate", {"seed": seed}, module, train)
    return module.eval(), data


# -------------------------------------------------------------------- reachability


class ReachabilityNetwork(nn.Module):
    """One convolution and one gated cell, the same at every step: reads off what can be reached."""

    def __init__(self, width: int = 16, steps: int = 8) -> None:
        super().__init__()
        self.enter, self.steps = nn.Linear(1, width), steps
        self.conv, self.cell = GraphConv(width, width), nn.GRUCell(width, width)
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """``[N, 2]`` logits of "not reached" and "reached" from ``x [N, 1]``, 1 at the source."""
        state = torch.tanh(self.enter(x))
        for _ in range(self.steps):
            state = self.cell(torch.tanh(self.conv(state, edge_index)), state)
        logits: Tensor = self.leave(state)
        return logits


def reachability_graph(nodes: int, degree: float, seed: int) -> Any:
    """A random directed graph with ``x`` 1 at node 0 and ``y`` whether it reaches a node."""
    import networkx as nx

    drawn = nx.gnp_random_graph(nodes, degree / (nodes - 1), seed=seed, directed=True)
    index = torch.tensor(list(drawn.edges), dtype=torch.int64).reshape(-1, 2).T.contiguous()
    reached = nx.descendants(drawn, 0) | {0}
    x = torch.zeros(nodes, 1)
    x[0] = 1.0
    y = torch.tensor([int(node in reached) for node in range(nodes)])
    return Data(x=x, edge_index=index, y=y)


@with_gradients
def trained_reachability_network(
    seed: int = 0, nodes: int = 20, degree: float = 1.3
) -> ReachabilityNetwork:
    """The module, trained on graphs of 20 nodes; it is asked about larger ones."""
    from torch_geometric.data import Batch

    torch.manual_seed(seed)
    module = ReachabilityNetwork()

    def train() -> None:
        optimiser = torch.optim.Adam(module.parameters(), lr=5e-3)
        for step in range(300):
            first = 1_000_000 + 32 * step
            batch: Any = Batch.from_data_list(
                [reachability_graph(nodes, degree, first + i) for i in range(32)]
            )
            cross_entropy_step(optimiser, module(batch.x, batch.edge_index), batch.y)

    train_once("reaching", {"seed": seed, "nodes": nodes, "degree": degree}, module, train)
    return module.eval()
