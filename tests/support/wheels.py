"""Small asynchronous recurrent networks, and what they compute written out node by node."""

import numpy as np
import torch

from graphprune.adapters import ARGNN


def random_network(nodes=12, inputs=3, degree=3.0, seed=0, **options):
    """A random directed graph, cycles, self-loops and parallel edges included."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes, (2, int(nodes * degree)), generator=generator)
    edges = edges[:, edges[1] >= inputs]
    options = {"steps": 4, "seed": seed, **options}
    return ARGNN(edges, nodes, inputs=range(inputs), **options)


def by_hand(network, x, schedule, mask=None, h0=None, replaced=None):
    """``[steps + 1, N]`` float64: scalar tanh states of one example, one node after another.

    ``replaced[step, edge]`` is what an ablated message becomes; ``None``: zero.
    """
    weight = (network.edge_weight.double() * network.edge_keep).detach().numpy()
    mask = np.ones(len(weight)) if mask is None else np.asarray(mask, dtype=float)
    replaced = np.zeros((len(schedule), len(weight))) if replaced is None else replaced
    bias = np.zeros(network.num_nodes)
    if network.bias is not None:
        bias = network.bias.detach().double().numpy()
    edges = network.edge_index.T.tolist()
    state = np.zeros(network.num_nodes) if h0 is None else h0.double().numpy().copy()
    state[network.input_nodes.numpy()] = np.asarray(x, dtype=float)
    seen = [state.copy()]
    for number, step in enumerate(schedule.steps):
        old = state.copy()
        if schedule.update == "sequential":
            nodes, read_from = step.tolist(), state
        else:
            nodes, read_from = np.flatnonzero(step.numpy()), old
        for node in nodes:
            total = sum(
                mask[e] * weight[e] * read_from[s] + (1 - mask[e]) * replaced[number, e]
                for e, (s, t) in enumerate(edges)
                if t == node
            )
            state[node] = np.tanh(total + bias[node])
        seen.append(state.copy())
    return np.stack(seen)


def messages_by_hand(network, schedule, states):
    """``[steps, E]``: what each edge sends in each step of a run with these states."""
    weight = (network.edge_weight.double() * network.edge_keep).detach().numpy()
    sent = np.zeros((len(schedule), len(weight)))
    for number, step in enumerate(schedule.steps):
        place = {node: i for i, node in enumerate(step.tolist())}
        for e, (s, t) in enumerate(network.edge_index.T.tolist()):
            newer = (
                schedule.update == "sequential"
                and s in place and t in place and place[s] < place[t]
            )  # fmt: skip
            sent[number, e] = weight[e] * states[number + newer][s]
    return sent
