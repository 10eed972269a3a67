"""Drawn recurrent networks, and compacted ones compared with the masked whole ones."""

import numpy as np
import torch

from support.wheels import random_network

FLOAT64 = {"atol": 1e-11, "rtol": 1e-9}


def drawn(seed, update):
    """A masked network in float64, its inputs, first states and drive, all of them drawn."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    nodes, inputs = int(random.integers(3, 24)), int(random.integers(0, 4))
    net = random_network(
        max(nodes, inputs + 1),
        inputs,
        float(random.choice([0, 0.5, 1, 2, 4])),
        seed,
        update=update,
        bias=bool(random.integers(2)),
        activation=str(random.choice(["tanh", "sigmoid", "relu", "identity"])),
        output_activation=[None, "identity", "sigmoid"][random.integers(3)],
        outputs=None if random.integers(2) else random.choice(nodes, 2, replace=False).tolist(),
        steps=int(random.integers(1, 8)),
        channels=int(random.integers(1, 3)),
    ).double()
    if net.bias is not None:
        torch.nn.init.normal_(net.bias)
    net.keep(torch.rand(len(net.edge_weight)) < float(random.choice([0, 0.1, 0.5, 1])))

    def numbers(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    d = net.channels
    x = numbers(3, inputs, *([d] if d > 1 else [])) if inputs else None
    h0 = numbers(3, net.num_nodes, d) if x is None or random.integers(3) == 0 else None
    drive = None
    if random.integers(3) == 0:
        steps = [net.steps] if random.integers(2) else []
        drive = numbers(*steps, 3, net.num_nodes, d)
    return net, x, h0, drive


def compared(net, small, x, h0, drive):
    assert len(small.edge_weight) <= int(net.edge_keep.sum())
    nodes = small.compaction.nodes
    given = [tensor for tensor in (x, h0, drive) if tensor is not None]
    whole, part = [net.edge_weight], [small.edge_weight]
    if net.bias is not None:
        whole, part = [*whole, net.bias], [*part, small.bias]
    state = net(x, h0, drive=drive)
    for wanted, got in (
        (net.read(state), small.predict(x, h0, drive=drive)),
        (state.index_select(-2, nodes), small(x, h0, drive=drive)),
    ):
        torch.testing.assert_close(got, wanted, **FLOAT64)
        factors = torch.randn_like(wanted)
        options = {"allow_unused": True, "retain_graph": True, "materialize_grads": True}
        want = torch.autograd.grad((wanted * factors).sum(), [*whole, *given], **options)
        found = torch.autograd.grad((got * factors).sum(), [*part, *given], **options)
        dropped = torch.ones(net.num_nodes, dtype=torch.bool)
        dropped[nodes] = False
        edges = net.edge_keep & ~dropped[net.edge_index[1]]
        want = list(want)
        want[0] = want[0][edges]
        if net.bias is not None:
            want[1] = want[1][nodes]
        for a, b in zip(want, found, strict=True):
            torch.testing.assert_close(b, a, **FLOAT64)
        with torch.no_grad():  # nothing kept for gradients: the same numbers
            again = small.predict(x, h0, drive=drive)
        torch.testing.assert_close(again, net.read(state), **FLOAT64)
