"""Models and circuits for tests of exported models."""

import torch
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune import Ablation, Batch, Circuit, EdgeMask

from .tiny import random_pair, tiny


def system(family, dtype=torch.float64, settings=None, **options):
    """A model, and its batch with every position an answer position."""
    model = gp.wrap(tiny(family, dtype=dtype, **(settings or {})), **options)
    clean, corrupt = random_pair(model.module)
    places = torch.arange(clean.shape[1]).expand(len(clean), -1)
    return model, Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean), positions=places)


def ablation_of(model, batch, kind):
    if kind == "zero":
        return Ablation("zero")
    return model.mean_ablation([batch], per_position=kind == "mean_positional")


def drawn(model, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return gp.EdgeMask(
        model.graph, torch.rand(model.graph.num_edges, generator=generator) < density
    )


def named(model, *edges):
    """The circuit of these edges."""
    values = torch.zeros(model.graph.num_edges)
    values[[model.graph.edge_number[name] for name in edges]] = 1
    return gp.EdgeMask(model.graph, values)


def task_of(batch):
    clean, corrupt = batch.clean["input_ids"], batch.corrupt["input_ids"]
    return gp.Task.from_tensors(
        clean, corrupt, answer=[1] * batch.size, distractor=[2] * batch.size
    )


def circuits():
    """Two circuits of a small graph: all edges, and every other one."""
    graph = transformer_graph(1, 2, 1)
    scores = random_scores(graph)
    half = EdgeMask(graph, (torch.arange(graph.num_edges) % 2).float())
    return Circuit(graph, EdgeMask.full(graph), scores), Circuit(graph, half, scores)
