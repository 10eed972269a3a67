"""A heterogeneous graph in which one relation alone matters, and a network that learned it.

Authors belong to groups and every paper is written by authors of one group. An example gives each
group a class, which its authors carry in their features, and asks for the class of one paper. All
other relations (reviews by any author, citations, venues, and what leads back to authors) are drawn
without regard to groups, and all other features are noise: the edges of ``author__writes__paper``
are the circuit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, HeteroData
from torch_geometric.nn import HeteroConv, SAGEConv

from graphprune.util.modes import with_gradients

from .train_once import cross_entropy_step, train_once

__all__ = ["PLANTED", "RelationalNetwork", "planted_examples", "planted_graph", "relational"]

Relation = tuple[str, str, str]

PLANTED: Relation = ("author", "writes", "paper")
RELATIONS: tuple[Relation, ...] = (
    PLANTED,
    ("author", "reviews", "paper"),
    ("paper", "cites", "paper"),
    ("venue", "prints", "paper"),
    ("paper", "mentions", "author"),
    ("paper", "sent_to", "venue"),
)
GROUPS, CLASSES, NOISE = 4, 3, 3
COUNTS = {"author": 16, "paper": 24, "venue": 5}


def planted_graph(seed: int = 0) -> Any:
    """A ``HeteroData`` of 16 authors, 24 papers and 5 venues, six relations, features of zeros.

    Two or three authors write a paper; every other relation has 48 edges.
    """
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    for kind, count in COUNTS.items():
        data[kind].x = torch.zeros(count, CLASSES + NOISE)
    group = torch.arange(COUNTS["author"]) % GROUPS
    pairs = []
    for paper in range(COUNTS["paper"]):
        able = torch.nonzero(group == paper % GROUPS)[:, 0]
        few = 2 + int(torch.randint(2, (), generator=generator))
        chosen = able[torch.randperm(len(able), generator=generator)[:few]]
        pairs += [(author, paper) for author in chosen.tolist()]
    data[PLANTED].edge_index = torch.tensor(pairs).T.contiguous()
    for relation in RELATIONS[1:]:
        a, b = torch.arange(COUNTS[relation[0]]), torch.arange(COUNTS[relation[2]])
        every = torch.cartesian_prod(a, b)
        if relation[0] == relation[2]:
            every = every[every[:, 0] != every[:, 1]]
        chosen = torch.randperm(len(every), generator=generator)[:48]
        data[relation].edge_index = every[chosen].T.contiguous()
    return data


def planted_examples(
    count: int, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    """Features clean and corrupted by type, ``[count]`` papers asked for and their classes.

    The corrupted input has every group's class moved by one, and the same noise. Papers are asked
    for in turn.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (count, GROUPS), generator=generator)
    group = torch.arange(COUNTS["author"]) % GROUPS
    clean: dict[str, Tensor] = {}
    for kind, nodes in COUNTS.items():
        x = torch.randn(count, nodes, CLASSES + NOISE, generator=generator)
        x[..., :CLASSES] = 0.0
        clean[kind] = x
    corrupt = {kind: x.clone() for kind, x in clean.items()}
    for side, shift in ((clean, 0), (corrupt, 1)):
        told = (classes[:, group] + shift) % CLASSES
        side["author"][..., :CLASSES] = nn.functional.one_hot(told, CLASSES).float()
    papers = torch.arange(count) % COUNTS["paper"]
    labels = classes.gather(1, (papers % GROUPS)[:, None])[:, 0]
    return clean, corrupt, papers, labels


class RelationalNetwork(nn.Module):
    """Two layers of means over neighbours for each relation; logits of papers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        size = CLASSES + NOISE
        self.first = HeteroConv({r: SAGEConv((size, size), width) for r in RELATIONS})
        self.second = HeteroConv({r: SAGEConv((width, width), width) for r in RELATIONS})
        self.leave = nn.Linear(width, CLASSES)

    def forward(self, x_dict: dict[str, Tensor], edge_index_dict: dict[Relation, Tensor]) -> Tensor:
        """``[papers, 3]``."""
        x = {kind: torch.relu(v) for kind, v in self.first(x_dict, edge_index_dict).items()}
        x = {kind: torch.relu(v) for kind, v in self.second(x, edge_index_dict).items()}
        logits: Tensor = self.leave(x["paper"])
        return logits


@with_gradients
def relational(seed: int = 0, steps: int = 150, graphs: int = 16) -> RelationalNetwork:
    """The network, trained on ``graphs`` drawn graphs, with classes drawn anew at every step.

    A few seconds, once.
    """
    torch.manual_seed(seed)
    module = RelationalNetwork()
    first = 1_000_000 * (seed + 1)

    def train() -> None:
        batch: Any = Batch.from_data_list([planted_graph(first + i) for i in range(graphs)])
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
        for step in range(steps):
            clean, _, _, _ = planted_examples(graphs, first + step)
            told = clean["author"][:, :GROUPS, :CLASSES].argmax(-1)  # author g is of group g
            labels = told[:, torch.arange(COUNTS["paper"]) % GROUPS].flatten()
            x = {kind: value.flatten(0, 1) for kind, value in clean.items()}
            cross_entropy_step(optimiser, module(x, batch.edge_index_dict), labels)

    settings = {"seed": seed, "steps": steps, "graphs": graphs}
    train_once("relational", settings, module, train)
    return module.eval()
