"""Generated graphs whose edges that matter are known, and networks that learned them.

``gnn-motifs``: the graphs that explainers are judged by (Ying et al. 2019), from PyG's generators:
motifs hung on a base graph, and a class for each role in the motif. Features say nothing, so that
only the motif's edges tell a node's class. ``block-model``: a heterophilous block model, in which
edges between partner classes tell a node's class and all others mislead.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCNConv, GraphConv, SAGEConv

from graphprune.core.mask import EdgeMask
from graphprune.core.registry import wrap
from graphprune.errors import InputError, unknown_name
from graphprune.study import Case
from graphprune.tasks.graphs import nodes
from graphprune.util.modes import with_gradients

from .train_once import cross_entropy_step, train_once

__all__ = ["MOTIFS", "block_graph", "block_model", "gnn_motifs", "motif_graph", "trained_motifs"]

MOTIFS = ("ba-shapes", "tree-cycles")
CLASSES, NOISE = 4, 4


def motif_graph(kind: str, seed: int = 0) -> Any:
    """One of ``MOTIFS`` as PyG's generators draw it.

    ``x`` is 1 everywhere, ``y`` the class (0: in no motif), ``edge_mask [E]`` 1 on the motifs'
    edges and ``motif [N]`` the number of a node's motif, -1 where it is in none. ``ba-shapes``: 80
    houses on a Barabasi-Albert graph of 300 nodes, 5 edges each; ``tree-cycles``: 80 rings of six
    on a binary tree of depth 8. ``train_mask`` has four fifths of the nodes.
    """
    from torch_geometric.datasets import ExplainerDataset
    from torch_geometric.datasets.graph_generator import BAGraph, TreeGraph
    from torch_geometric.datasets.motif_generator import CycleMotif, HouseMotif

    if kind not in MOTIFS:
        raise unknown_name("graph with motifs", kind, MOTIFS)
    before = np.random.get_state()  # noqa: NPY002  (PyG draws by numpy's global generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            if kind == "ba-shapes":
                made: Any = ExplainerDataset(BAGraph(300, 5), HouseMotif(), num_motifs=80)[0]
            else:
                tree = TreeGraph(depth=8, branch=2, undirected=True)
                made = ExplainerDataset(tree, CycleMotif(6), num_motifs=80)[0]
        finally:
            np.random.set_state(before)  # noqa: NPY002
        train = torch.rand(len(made.y)) < 0.8
    size = 5 if kind == "ba-shapes" else 6
    inside = made.node_mask > 0
    motif = torch.where(inside, (torch.cumsum(inside, 0) - 1) // size, -1)
    return Data(
        x=torch.ones(len(made.y), 10),
        edge_index=made.edge_index,
        y=made.y,
        edge_mask=made.edge_mask,
        motif=motif,
        train_mask=train,
    )


class ThreeLayers(nn.Module):
    """Three convolutions; classes are read off all three."""

    def __init__(self, conv: type[nn.Module], features: int, width: int, classes: int) -> None:
        super().__init__()
        sizes = [(features, width), (width, width), (width, width)]
        self.layers = nn.ModuleList(conv(*size) for size in sizes)
        self.leave = nn.Linear(3 * width, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """``[N, classes]``."""
        states = []
        for layer in self.layers:
            x = torch.relu(layer(x, edge_index))
            states.append(x)
        logits: Tensor = self.leave(torch.cat(states, 1))
        return logits


@lru_cache(maxsize=4)
@with_gradients
def trained_motifs(
    kind: str, conv: str = "sum", weights: int = 0, graph: int = 0
) -> tuple[ThreeLayers, Any]:
    """A network that learned :func:`motif_graph`'s classes, and the graph; ten seconds, once.

    Args:
        conv: ``"sum"`` (GraphConv) or ``"gcn"``.
        weights: the seed of its training.
        graph: the seed of the graph.
    """
    data = motif_graph(kind, graph)
    kinds = {"sum": GraphConv, "gcn": GCNConv}
    if conv not in kinds:
        raise unknown_name("conv", conv, kinds)
    torch.manual_seed(weights)
    module = ThreeLayers(kinds[conv], data.num_features, 32, int(data.y.max()) + 1)

    def train() -> None:
        epochs = 1500
        optimiser = torch.optim.Adam(module.parameters(), lr=5e-3)
        calm = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
        for _ in range(epochs):
            out = module(data.x, data.edge_index)[data.train_mask]
            cross_entropy_step(optimiser, out, data.y[data.train_mask])
            calm.step()

    settings = {"kind": kind, "conv": conv, "weights": weights, "graph": graph}
    train_once("gnn-motifs", settings, module, train)
    return module.eval(), data


def gnn_motifs(
    task: str,
    *,
    train: int,
    test: int,
    seed: int,
    conv: str = "sum",
    weights: int = 0,
    graph: int = 0,
) -> Case:
    """A network that tells roles in motifs; the motifs of the nodes trained on are the truth.

    Tasks are ``ba-shapes`` and ``tree-cycles``, examples nodes of motifs. There are no corrupted
    inputs, since features say nothing: methods take ``ablation="zero"`` or ``"delete"``.

    Args:
        conv: of the network, ``"sum"`` (GraphConv) or ``"gcn"``.
        weights: the seed of its training.
        graph: the seed of the graph.
    """
    module, data = trained_motifs(task, conv, weights, graph)
    model = wrap(module, data=data, name=f"gnn-{task}", tie=False)
    asked, other = _drawn(torch.nonzero(data.motif >= 0)[:, 0], train, test, seed)
    parts = [nodes(data.x, data.y, at=at, corrupt=None, name=task) for at in (asked, other)]
    # An edge of a motif has both its ends in it.
    own = torch.isin(data.motif[data.edge_index[0]], data.motif[asked])
    return Case(model, parts[0], parts[1], EdgeMask(model.graph, data.edge_mask * own))


# -------------------------------------------------------------------- block models


def block_graph(seed: int = 0, size: int = 50, partners: float = 6.0, others: float = 4.5) -> Any:
    """An undirected block model of four classes in which edges join a class to its partner.

    Classes 0 and 1 are partners, and 2 and 3. ``edge_mask [E]`` is 1 on edges between partners.
    ``x`` is a noisy class in the first four features, noise in four more.

    Args:
        size: nodes of a class.
        partners, others: mean degree of a node by edges to its partner class, and by all others.
    """
    from torch_geometric.utils import stochastic_blockmodel_graph

    chances = torch.full((CLASSES, CLASSES), others / ((CLASSES - 1) * size))
    for a in range(CLASSES):
        chances[a, a ^ 1] = partners / size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        index = stochastic_blockmodel_graph(torch.full((CLASSES,), size), chances)
        y = torch.arange(CLASSES).repeat_interleave(size)
        x = torch.randn(len(y), CLASSES + NOISE)
    x[:, :CLASSES] += nn.functional.one_hot(y, CLASSES)
    paired = (y[index[0]] ^ 1) == y[index[1]]
    return Data(x=x, edge_index=index, y=y, edge_mask=paired.float())


class TwoLayerSAGE(nn.Module):
    """Two layers of means over neighbours beside a node's own state."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(features, width), SAGEConv(width, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """``[N, classes]``."""
        logits: Tensor = self.second(torch.relu(self.first(x, edge_index)), edge_index)
        return logits


@with_gradients
def trained_block_model(seed: int = 0) -> TwoLayerSAGE:
    """The network, trained on other graphs of the model than it is asked about."""
    torch.manual_seed(seed)
    module = TwoLayerSAGE(CLASSES + NOISE, 32, CLASSES)

    def train() -> None:
        optimiser = torch.optim.Adam(module.parameters(), lr=1e-2, weight_decay=1e-4)
        first = 1_000_000 * (seed + 1)
        for step in range(200):
            drawn: Any = Batch.from_data_list([block_graph(first + 4 * step + i) for i in range(4)])
            cross_entropy_step(optimiser, module(drawn.x, drawn.edge_index), drawn.y)

    train_once("block-model", {"seed": seed}, module, train)
    return module.eval()


def block_model(
    task: str = "classes", *, train: int, test: int, seed: int, weights: int = 0, graph: int = 7
) -> Case:
    """A GraphSAGE network on a heterophilous block model; edges between partners are the truth.

    Examples are nodes; in the corrupted input each has another node's features.

    Args:
        weights: the seed of its training.
        graph: the seed of the graph asked about.
    """
    if task != "classes":
        raise InputError(f"the system has the task 'classes', its only task; got {task!r}")
    data = block_graph(graph)
    model = wrap(trained_block_model(weights), data=data, name="block-model", tie=False)
    parts = [
        nodes(data.x, data.y, at=at, classes=CLASSES, name=task, seed=seed)
        for at in _drawn(torch.arange(len(data.y)), train, test, seed)
    ]
    return Case(model, parts[0], parts[1], EdgeMask(model.graph, data.edge_mask))


def _drawn(among: Tensor, train: int, test: int, seed: int) -> tuple[Tensor, Tensor]:
    """Nodes to train and to test on; at most half of all are to train on."""
    order = among[torch.from_numpy(np.random.default_rng(seed).permutation(len(among)))]
    first = min(train, len(order) // 2)
    return order[:first], order[first : first + test]
