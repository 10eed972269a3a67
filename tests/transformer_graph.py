"""A transformer's computational graph without a transformer, in the adapter's names and order."""

from __future__ import annotations

import torch

from graphprune import ComputationalGraph, EdgeScores, Node


def transformer_graph(
    layers: int, heads: int, kv_heads: int | None = None, *, parallel: bool = False
) -> ComputationalGraph:
    """Nodes ``input``, heads, (key/value readers,) MLPs, ``logits``; readers in layer order."""
    grouped = kv_heads is not None and kv_heads != heads
    n_kv = kv_heads if kv_heads is not None else heads
    nodes = [Node("input", "embed")]
    number = {"input": 0}

    def add(name: str, kind: str, layer: int | None, index: int | None = None) -> str:
        number[name] = len(nodes)
        nodes.append(Node(name, kind, layer, index))
        return name

    kinds = ("q", "k", "v", "mlp", "resid")
    writers = ["input"]
    edges: list[tuple[str, str, int]] = []
    wires: list[tuple[str, str]] = []
    for layer in range(layers):
        query = [add(f"a{layer}.h{h}", "head", layer, h) for h in range(heads)]
        reads = query
        if grouped:
            reads = [add(f"a{layer}.kv{j}", "kv", layer, j) for j in range(n_kv)]
            wires += [(reads[h * n_kv // heads], query[h]) for h in range(heads)]
        mlp = add(f"m{layer}", "mlp", layer)
        for kind, readers in enumerate((query, reads, reads)):
            edges += [(w, r, kind) for r in readers for w in writers]
        if not parallel:
            writers = [*writers, *query]
        edges += [(w, mlp, 3) for w in writers]
        writers = [*writers, *query, mlp] if parallel else [*writers, mlp]
    add("logits", "output", None)
    edges += [(w, "logits", 4) for w in writers]
    index = torch.tensor([[number[u] for u, _, _ in edges], [number[v] for _, v, _ in edges]])
    return ComputationalGraph(
        nodes=tuple(nodes),
        edge_index=index,
        edge_kind=torch.tensor([kind for _, _, kind in edges], dtype=torch.uint8),
        edge_kinds=kinds,
        ports=("q", "k", "v"),
        fixed_edge_index=torch.tensor(
            [[number[u] for u, _ in wires], [number[v] for _, v in wires]], dtype=torch.int64
        ).reshape(2, -1),
        inputs=(0,),
        outputs=(number["logits"],),
    )


def random_scores(graph: ComputationalGraph, seed: int = 0) -> EdgeScores:
    """Heavy-tailed scores of both signs, as attribution gives them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(graph.num_edges, generator=generator)
    return EdgeScores(graph, values.abs() ** 3 * values.sign(), method="EAP")
