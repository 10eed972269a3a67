"""Every rule of what masks, scores and counts mean, on random graphs, masks and models.

Graph networks of two layers are written once more in dense matrices, and language models' edges
are counted by the formula. What a family's own tests and ``graphprune.conformance`` ask of every
adapter (gradients, groups that count as one node, stacks of masks) is not asked again here.
"""

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.documented import lm, prompts
from support.tiny import tiny
from torch_geometric.data import Data
from torch_geometric.nn import GraphConv, SAGEConv

import graphprune as gp

few = settings(max_examples=12, deadline=None, derandomize=True)
many = settings(max_examples=50, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)


class Layers(torch.nn.Module):
    """Two convolutions that sum, or average, what their neighbours send."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.second = kind(3, 4), kind(4, 2)

    def forward(self, x, edge_index):
        return self.second(torch.tanh(self.first(x, edge_index)), edge_index)


class System:
    """A random graph with at least an edge, a random network on it, and prompts: its nodes."""

    def __init__(self, seed, kind=GraphConv, ring=False):
        self.draw = torch.Generator().manual_seed(seed)
        nodes = self.number(2, 7)
        edges = torch.rand(nodes, nodes, generator=self.draw) < 0.4
        edges[0, 1] = True
        if ring:  # so that an edge leads to every node
            edges |= torch.eye(nodes, dtype=torch.bool).roll(1, 0)
        self.edge_index = edges.nonzero().T.contiguous()
        x = torch.randn(nodes, 3, generator=self.draw)
        self.data = Data(x=x, edge_index=self.edge_index, y=torch.arange(nodes) % 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = Layers(kind).eval()
        self.model = gp.wrap(self.module, data=self.data, tie=False)
        self.task = gp.tasks.nodes(self.data, seed=0)
        self.batch = next(self.task.batches(nodes))
        self.order = torch.tensor(self.batch.indices)

    def number(self, least, most):
        return int(torch.randint(least, most + 1, (1,), generator=self.draw))

    def mask(self, binary=False):
        values = torch.rand(self.edge_index.shape[1], generator=self.draw)
        return (values < 0.6).float() if binary else values

    def run(self, mask, kind="zero"):
        ablation = gp.Ablation(kind)
        return self.model.run(self.batch, mask, self.model.reference(self.batch, ablation))

    def dense(self, mask):
        """The outputs by matrix products alone: ``mask`` times what an edge carries."""
        nodes = self.data.num_nodes
        weights = torch.zeros(nodes, nodes).index_put(tuple(self.edge_index.flip(0)), mask)
        h = self.data.x
        for number, layer in enumerate((self.module.first, self.module.second)):
            h = torch.tanh(h) if number else h
            h = layer.lin_rel(weights @ h) + layer.lin_root(h)
        return h[self.order]


@few
@given(seeds)
def test_a_reader_gets_the_masked_messages_and_what_is_no_message(seed):
    """What v reads is the sum of ``m y`` (zero in place of y), and its own term always."""
    system = System(seed)
    mask = system.mask()
    torch.testing.assert_close(system.run(mask), system.dense(mask), rtol=1e-4, atol=1e-5)


@few
@given(seeds)
def test_ones_are_the_module_and_zeros_leave_what_cannot_be_masked(seed):
    system = System(seed)
    count = system.model.graph.num_edges
    with torch.no_grad():
        plain = system.module(system.data.x, system.edge_index)[system.order]
        alone = system.module(system.data.x, system.edge_index[:, :0])[system.order]
    torch.testing.assert_close(system.run(torch.ones(count)), plain)
    torch.testing.assert_close(system.run(torch.zeros(count)), alone)


@few
@given(seeds)
def test_deleted_edges_are_absent_and_means_are_over_the_rest(seed):
    system = System(seed, SAGEConv)  # which averages
    mask = system.mask(binary=True)
    with torch.no_grad():
        plain = system.module(system.data.x, system.edge_index[:, mask.bool()])[system.order]
    got = system.run(mask, "delete")
    torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-5)


@few
@given(seeds)
def test_a_score_is_what_ablating_the_edge_alone_costs_on_average(seed):
    """Positive is useful, whichever way the metric counts; each edge by a run of its own."""
    system = System(seed)
    graph, metric = system.model.graph, system.task.metric
    full = system.dense(torch.ones(graph.num_edges))
    want = torch.zeros(graph.num_edges)
    for edge in range(graph.num_edges):
        mask = torch.ones(graph.num_edges)
        mask[edge] = 0.0
        lost = metric(full, system.batch, full) - metric(system.dense(mask), system.batch, full)
        want[edge] = metric.sign * lost.detach().mean()
    scores = gp.ExactPatching(ablation="zero").score(system.model, system.task)
    torch.testing.assert_close(scores.values, want, rtol=1e-3, atol=1e-5)


@few
@given(seeds)
def test_scores_are_means_over_examples(seed):
    system = System(seed, ring=True)
    method, count = gp.EAP(ablation="zero"), len(system.task)
    split = system.number(1, count - 1)
    whole = method.score(system.model, system.task).values
    parts = [
        (split, system.task.subset(list(range(split)))),
        (count - split, system.task.subset(list(range(split, count)))),
    ]
    mean = sum(n * method.score(system.model, part).values for n, part in parts) / count
    torch.testing.assert_close(whole, mean, rtol=1e-3, atol=1e-5)


@many
@given(seeds, st.integers(1, 60), st.one_of(st.floats(0.001, 1.0), st.integers(1, 60)))
def test_sizes_are_counts_or_shares_and_density_is_what_is_kept(seed, edges, size):
    graph = gp.ComputationalGraph.from_edges([("a", f"b{k}") for k in range(edges)])
    draw = torch.Generator().manual_seed(seed)
    scores = gp.EdgeScores(graph, torch.randn(edges, generator=draw))
    wanted = size if isinstance(size, int) else int(size * edges)
    if wanted > edges or wanted == 0:
        if wanted > edges:
            with pytest.raises(gp.InputError):
                scores.top(size)
        return
    mask = scores.top(size)
    strongest = scores.values.abs().argsort(descending=True)[:wanted]
    assert set(mask.kept.nonzero()[:, 0].tolist()) == set(strongest.tolist())
    assert mask.num_kept == wanted
    assert mask.density == wanted / edges
    assert mask.density + mask.sparsity == 1


@few
@given(st.integers(1, 3), st.sampled_from([(4, 4), (4, 2), (4, 1)]), st.sampled_from([1, 2]))
def test_edges_of_a_sequential_model_are_the_formulas(layers, heads, embedding_nodes):
    """Native key and value heads, as ``graphprune`` counts; every further node sends to all."""
    query, key = heads
    if embedding_nodes == 2:  # positions of their own: GPT-2's, whose heads are not grouped
        query, key = 4, 4
        module = tiny("gpt2", num_hidden_layers=layers)
    else:
        module = tiny("llama", num_hidden_layers=layers, num_key_value_heads=key)
    graph = gp.wrap(module, embedding_nodes=embedding_nodes).graph
    want, senders = 0, embedding_nodes
    for _ in range(layers):
        want += (query + 2 * key) * senders  # into the heads
        senders += query
        want += senders  # into the MLP
        senders += 1
    assert graph.num_edges == want + senders
    if embedding_nodes == 1:
        per = query + 1
        assert graph.num_edges == 1 + layers * per + sum(
            (query + 2 * key) * (1 + n * per) + (1 + n * per + query) for n in range(layers)
        )


def test_scores_do_not_depend_on_threads_or_batches_beyond_rounding():
    """1e-5 of the largest score, in float32: sums are added in another order."""
    model, task = lm(), prompts()
    want = gp.EAPIG(batch_size=1).score(model, task).values
    before = torch.get_num_threads()
    try:
        for threads, size in ((1, 3), (2, len(task))):
            torch.set_num_threads(threads)
            got = gp.EAPIG(batch_size=size).score(model, task).values
            assert float((got - want).abs().max()) <= 1e-5 * float(want.abs().max())
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own counts")
def test_a_thousand_calls_leave_no_memory_and_no_files(tmp_path):
    """Of scoring, judging, saving, loading and a refused call in turn; flat after the first 200."""

    def held():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len([*Path("/proc/self/fd").iterdir()])

    system = System(7, ring=True)
    model, task = system.model, system.task

    def call(number):
        scores = gp.EAP(ablation="zero").score(model, task)
        mask = scores.top(2)
        gp.evaluate(model, task, mask, ablation="zero")
        circuit = gp.Circuit.from_mask(mask, scores=scores, model=model, task=task)
        assert gp.Circuit.load(circuit.save(tmp_path / "c", overwrite=True)) == circuit
        with pytest.raises(gp.GraphPruneError):
            scores.top(10**6 + number)

    for number in range(200):
        call(number)
    gc.collect()
    memory, files = held()
    for number in range(800):
        call(number)
    gc.collect()
    after, files_after = held()
    print(f"{memory:.1f} MiB, {files} files after 200 calls; then {after:.1f}, {files_after}")
    assert after - memory < 8
    assert files_after == files
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
