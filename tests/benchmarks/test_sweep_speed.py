"""Sequential sweeps of an asynchronous recurrent network: by levels against node by node."""

import pytest
import torch

from benchmarks.measuring import medians
from graphprune.adapters import ARGNN

pytestmark = pytest.mark.benchmark


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("nodes", "least"), [(1000, 10.0), (5000, 10.0)])
def test_levels_are_faster_than_the_plain_loop(nodes, least, capsys):
    """Mean degree 4; a fresh order each time, so that making the levels counts."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(nodes, (2, 4 * nodes), generator=generator)
    net = ARGNN(edges, nodes, update="sequential")
    state, shown = torch.randn(nodes, 1, generator=generator), []

    def node_by_node(state, schedule, adjacency):
        for node in schedule.steps[0].tolist():
            read = adjacency.messages(state, incoming[node]).sum(-2, keepdim=True)
            one = torch.tensor([node])
            state = state.index_copy(-2, one, torch.tanh(read))

    order = torch.argsort(edges[1], stable=True)
    incoming = torch.split(order, torch.bincount(edges[1], minlength=nodes).tolist())

    def sweep(by_levels):
        def job():
            schedule = net.schedule(1, generator)
            adjacency = net.adjacency(net.masked_weight())
            with torch.no_grad():
                if by_levels:
                    net.advance(state, schedule, 0, adjacency)
                    shown.append(len(schedule.levels[0]))
                else:
                    node_by_node(state, schedule, adjacency)

        return job

    times = medians({"levels": sweep(True), "loop": sweep(False)})
    ratio = times["loop"] / times["levels"]
    with capsys.disabled():
        print(f"\n{nodes} nodes, {max(shown)} levels: {1e3 * times['levels']:.2f} ms against "
              f"{1e3 * times['loop']:.2f} ms, {ratio:.1f}x")  # fmt: skip
    assert ratio >= least
