"""Small asynchronous recurrent networks, and what they compute written out node by node."""

import numpy as np
import torch

from graphprune.adapters.gnn import ARGNN


def random_network(nodes=12, inputs=3, degree=3.0, seed=0, **options):
    """A random directed graph, cycles, self-loops and parallel edges included."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes, (2, int(nodes * degree)), generator=generator)
    edges = edges[:, edges[1] >= inputs]
    options = {"steps": 4, "seed": seed, **options}
    return ARGNN(edges, nodes, inputs=range(inputs), **options)


def by_hand(network, x, schedule, mask=None, h0=None):
    """``[steps + 1, N]`` float64: scalar tanh states of one example, one node after another."""
    weight = (network.edge_weight.double() * network.edge_keep).detach().numpy()
    weight = weight if mask is None else weight * np.asarray(mask, dtype=float)
    bias = np.zeros(network.num_nodes)
    if network.bias is not None:
        bias = network.bias.detach().double().numpy()
    edges = network.edge_index.T.tolist()
    state = np.zeros(network.num_nodes) if h0 is None else h0.double().numpy().copy()
    state[network.input_nodes.numpy()] = np.asarray(x, dtype=float)
    seen = [state.copy()]
    for step in schedule.steps:
        old = state.copy()
        if schedule.update == "sequential":
            nodes, read_from = step.tolist(), state
        else:
            nodes, read_from = np.flatnonzero(step.numpy()), old
        for node in nodes:
            total = sum(
                w * read_from[s] for w, (s, t) in zip(weight, edges, strict=True) if t == node
            )
            state[node] = np.tanh(total + bias[node])
        seen.append(state.copy())
    return np.stack(seen)
