"""Systems for studies whose answers, or whose training, are known: see ``graphprune.study``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.core.mask import EdgeMask
from graphprune.core.model import MaskedModel
from graphprune.core.registry import wrap
from graphprune.core.task import Task
from graphprune.errors import InputError, unknown_name
from graphprune.study import Case
from graphprune.tasks.graphs import nodes, patterns

__all__ = [
    "argnn_digits",
    "gcn_karate",
    "gnn_reachability",
    "hetero_planted",
    "tracr",
    "trained_gpt2",
]


def tracr(task: str, *, train: int, test: int, seed: int, ablation_seed: int = 0) -> Case:
    """The RASP program ``task``, compiled by Tracr, on its own inputs; its circuit is known.

    Inputs are drawn without replacement, so that train and test share none; programs with too few
    take all their inputs for both. Of categorical programs methods see the cross entropy.

    Args:
        ablation_seed: draws the corrupted input of each input.
    """
    from ..rasp import cross_entropy, rasp_programs

    programs = rasp_programs()
    if task not in programs:
        raise unknown_name("program", task, programs)
    model, whole, truth = _compiled(task, ablation_seed)
    drawn = whole.subset(np.random.default_rng(seed).permutation(len(whole)).tolist())
    first, second = drawn, drawn
    if len(drawn) >= train + test:
        first, second = drawn.take(train), drawn.subset(range(train, train + test))
    if drawn.metric.flat_at_full and drawn.examples.batch([0]).answer is not None:
        first = first.with_metric(cross_entropy())  # whose gradient does not vanish
    return Case(model, first, second, truth)


@lru_cache(maxsize=2)
def _compiled(task: str, seed: int) -> tuple[MaskedModel, Task, EdgeMask]:
    from .. import rasp_programs, tracr, tracr_truth

    model, whole = tracr(rasp_programs()[task].compile(), name=task, seed=seed)
    return model, whole, tracr_truth(model, whole)


def trained_gpt2(
    task: str,
    *,
    train: int,
    test: int,
    seed: int,
    weights: int = 0,
    layers: int = 4,
    heads: int = 8,
) -> Case:
    """A small GPT-2 that learns indirect object identification when first asked for (1-2 minutes).

    Test prompts are of a part of all prompts that neither training nor methods see. The one task is
    ``ioi``.

    Args:
        weights: the seed of its training.
        layers: of the model.
        heads: of a layer.
    """
    from .language import TrainingSettings, trained_ioi, trained_task

    _require_task(task, "ioi")
    module, tokenizer = trained_ioi(weights, TrainingSettings(layers=layers, heads=heads))
    return Case(
        wrap(module),
        trained_task(tokenizer, train, 1000 + seed, held_out=False),
        trained_task(tokenizer, test, 2000 + seed),
    )


def argnn_digits(
    task: str = "digits", *, train: int, test: int, seed: int, weights: int = 0, hidden: int = 60
) -> Case:
    """The asynchronous recurrent network that reads 8 x 8 digits.

    Train and test patterns are drawn from the digits that it never saw. A corrupted input is a
    digit of another class.

    Args:
        weights: the seed of its training.
        hidden: its hidden nodes.
    """
    from . import graph_networks as trained

    _require_task(task, "digits")
    network = trained.argnn_digits(hidden=hidden, seed=weights)
    x, labels = trained.digits()
    order = np.random.default_rng(seed).permutation(trained.TEST_DIGITS)
    if train + test > len(order):
        raise InputError(f"there are {len(order)} unseen digits, {train + test} were asked for")
    chosen = torch.from_numpy(len(x) - trained.TEST_DIGITS + order[: train + test])
    whole = patterns(x[chosen], labels[chosen], classes=10, name="digits", seed=seed)
    model = wrap(network, name="argnn-digits")
    return Case(
        model,
        whole.take(train),
        whole.subset(range(train, train + test)),
        measure=_accuracy_without(model),
    )


def gcn_karate(
    task: str = "communities", *, train: int, test: int, seed: int, weights: int = 0
) -> Case:
    """A GCN that tells the four communities of the karate club; examples are its members.

    Args:
        weights: the seed of its training.
    """
    from . import graph_networks as trained

    _require_task(task, "communities")
    module, data = trained.karate_gcn(weights)
    model = wrap(module, data=data, tie=False, name="gcn-karate")  # as its tables count edges
    parts = [
        nodes(data.x, data.y, at=at, classes=4, name=task, seed=seed)
        for at in _drawn_nodes(data.num_nodes, train, test, seed)
    ]
    return Case(model, parts[0], parts[1])


def gnn_reachability(
    task: str = "reachable",
    *,
    train: int,
    test: int,
    seed: int,
    weights: int = 0,
    size: int = 60,
    degree: float = 1.3,
) -> Case:
    """A recurrent network that tells which nodes node 0 reaches, on a graph three times as large.

    It learned on graphs of 20 nodes. Examples are nodes; in the corrupted input the source is
    another node.

    Args:
        weights: the seed of its training.
        size: nodes of the graph.
        degree: mean number of edges that leave a node.
    """
    from . import graph_networks as trained

    _require_task(task, "reachable")
    module = trained.trained_reachability_network(weights)
    data = trained.reachability_graph(size, degree, 7)
    model = wrap(module, data=data, name="gnn-reachability")
    other = {"x": data.x.roll(size // 2, 0)}
    parts = [
        nodes(data.x, data.y, at=at, corrupt=other, classes=2, name=task)
        for at in _drawn_nodes(size, train, test, seed)
    ]
    return Case(model, parts[0], parts[1])


def hetero_planted(
    task: str = "planted", *, train: int, test: int, seed: int, weights: int = 0, graph: int = 7
) -> Case:
    """A heterogeneous network for which one of six relations matters: its edges are the truth.

    It learned on other graphs than the one asked about. Examples are papers, with classes of their
    own for the groups of authors; 24 of them ask for every paper once.

    Args:
        weights: the seed of its training.
        graph: the seed of the graph asked about.
    """
    from . import planted

    _require_task(task, "planted")
    data = planted.planted_graph(graph)
    model = wrap(planted.relational(weights), data=data, name="hetero-planted")
    first = data["author"].num_nodes  # papers stand behind authors
    parts = []
    for count, number in ((train, 2 * seed), (test, 2 * seed + 1)):
        clean, corrupt, papers, labels = planted.planted_examples(count, number)
        parts.append(
            patterns(
                {f"{kind}.x": x for kind, x in clean.items()},
                labels,
                corrupt={f"{kind}.x": x for kind, x in corrupt.items()},
                classes=planted.CLASSES,
                positions=first + papers,
                name=task,
            )
        )
    kind = model.graph.edge_kinds.index("__".join(planted.PLANTED))
    return Case(model, parts[0], parts[1], EdgeMask(model.graph, model.graph.edge_kind == kind))


def _require_task(task: str, only: str) -> None:
    if task != only:
        raise InputError(f"the system has the task {only!r}, its only task; got {task!r}")


def _drawn_nodes(count: int, train: int, test: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of nodes to train and to test on; at most half of all are to train on."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    first = min(train, count // 2)
    return order[:first], order[first : first + test]


def _accuracy_without(model: Any) -> Any:
    """What a mask leaves of the accuracy where its cut edges are gone for good."""

    def measure(mask: Any) -> dict[str, float]:
        network = model.module
        before = network.edge_keep.clone()
        try:
            network.keep(mask)
            small = network.compact()
        finally:
            network.edge_keep.copy_(before)
        from ..gnn.training import accuracy
        from . import graph_networks as trained

        x, labels = trained.digits()
        last = slice(len(x) - trained.TEST_DIGITS, None)
        return {"accuracy_deleted": accuracy(small, x[last], labels[last])}

    return measure
