"""ACDC as its definition says: one whole run for each edge. Shares no code with the library's."""

import networkx as nx
import torch


def brute_force(losses, graph, order, tau, *, absolute=False, drop_dead=True, at=None):
    """The kept edges ``[E]`` bool; ``losses(mask [E]) -> float``.

    ``at(edge)`` gives the losses that edges of the same reader are tried with.
    """
    kept = torch.ones(graph.num_edges)
    pairs = graph.edge_index.T.tolist()
    targets = graph.edge_index[1].tolist()
    groups = {n: group for group in graph.groups for n in group}
    current = None
    seen = None
    for edge in order.tolist():
        port = graph.edge_kinds[int(graph.edge_kind[edge])]
        reader = (targets[edge], port if port in graph.ports else "")
        if reader != seen:
            seen, dead = reader, False
            if drop_dead:
                live = nx.DiGraph()
                live.add_nodes_from(range(graph.num_nodes))
                live.add_edges_from(graph.fixed_edge_index.T.tolist())
                for group in graph.groups:
                    nx.add_cycle(live, group)
                live.add_edges_from((u, v) for e, (u, v) in enumerate(pairs) if kept[e])
                dead = not any(
                    nx.has_path(live, n, out)
                    for n in groups.get(targets[edge], (targets[edge],))
                    for out in graph.output_nodes
                )
        if dead:
            kept[edge] = 0.0
            continue
        if at is not None and at(edge) is not losses:
            losses, current = at(edge), None
        if current is None:
            current = losses(kept)
        trial = kept.clone()
        trial[edge] = 0.0
        new = losses(trial)
        change = abs(new - current) if absolute else new - current
        if change < tau:
            kept, current = trial, new
    return kept.bool()


def mean_loss(model, task, metric, ablation="counterfactual", batch_size=None):
    """``mask -> float``: the mean metric, lower is better, from single runs."""
    from graphprune.methods import resolve_ablation

    metric = task.with_metric(metric).metric
    chosen = resolve_ablation(model, task, ablation)
    parts = [(b, model.reference(b, chosen)) for b in task.batches(batch_size)]

    @torch.no_grad()
    def losses(mask):
        total = 0.0
        for batch, reference in parts:
            out = model.run(batch, mask.float(), reference).double()
            total += -metric.sign * float(metric(out, batch, reference.full.double()).sum())
        return total / len(task)

    return losses
