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

    def sweep(name):
        def job():
            plan = net.schedule(1, generator)
            wiring = net._wiring(net.masked_weight())
            with torch.no_grad():
                getattr(net, name)(state, plan, 0, wiring, None)
            shown.append(len(plan.levels[0]) if name == "sweep_levels" else 0)

        return job

    times = medians({n: sweep(n) for n in ("sweep_levels", "sweep_loop")})
    ratio = times["sweep_loop"] / times["sweep_levels"]
    with capsys.disabled():
        print(f"\n{nodes} nodes, {max(shown)} levels: {1e3 * times['sweep_levels']:.2f} ms against "
              f"{1e3 * times['sweep_loop']:.2f} ms, {ratio:.1f}x")  # fmt: skip
    assert ratio >= least
