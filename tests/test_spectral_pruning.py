"""Spectral pruning: of graphs, of models, and while a network learns."""

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from support.rings import RingExamples, Rings
from support.tiny import random_pair, tiny

import graphprune as gp
from graphprune import spectral


def graph_of(nodes, degree, seed, signed=False):
    drawn = nx.gnp_random_graph(nodes, degree / (nodes - 1), seed=seed, directed=True)
    graph = gp.ComputationalGraph.from_networkx(drawn)
    generator = np.random.default_rng(seed)
    weights = generator.uniform(0.2, 1.5, graph.num_edges)
    if signed:
        weights *= generator.choice([-1.0, 1.0], graph.num_edges)
    return graph, weights


def turning(graph, weights, mask, kind="out"):
    kept = mask.kept.numpy()
    index = graph.edge_index.numpy()[:, kept]
    values = spectral.spectrum((index, graph.num_nodes), np.asarray(weights)[kept], kind)
    return np.abs(values.imag).sum()


def by_chance(graph, count, measure):
    """A measure of ten random masks of ``count`` edges."""
    generator = np.random.default_rng(0)
    places = [torch.from_numpy(generator.permutation(graph.num_edges)) for _ in range(10)]
    return [measure(gp.EdgeMask(graph, (place < count).float())) for place in places]


@pytest.mark.parametrize("kind", ["out", "in", "both", "rw", "adjacency"])
def test_damping_beats_chance_and_meets_its_budget(kind):
    graph, weights = graph_of(40, 4, 0)
    mask = spectral.prune(graph, weights, kind, size=0.8)
    assert mask.num_kept == int(0.8 * graph.num_edges)
    full = gp.EdgeMask(graph, torch.ones(graph.num_edges))
    start, end = turning(graph, weights, full, kind), turning(graph, weights, mask, kind)
    others = by_chance(graph, mask.num_kept, lambda other: turning(graph, weights, other, kind))
    assert end < 0.5 * min(others)
    assert end < 0.45 * start


def test_one_removal_is_the_best_there_is():
    """Single edges are verified exactly: the short-list of all edges gives brute force's answer."""
    for seed in range(3):
        graph, weights = graph_of(9, 3, seed, signed=True)
        mask = spectral.prune(
            graph, weights, size=graph.num_edges - 1, chunk=1, shortlist=graph.num_edges
        )
        results = []
        for edge in range(graph.num_edges):
            values = torch.ones(graph.num_edges)
            values[edge] = 0
            results.append(turning(graph, weights, gp.EdgeMask(graph, values)))
        gone = int((~mask.kept).nonzero())
        assert results[gone] == pytest.approx(min(results), abs=1e-9)


def test_preserving_keeps_what_damping_removes():
    graph, weights = graph_of(20, 4, 1)
    full = gp.EdgeMask(graph, torch.ones(graph.num_edges))
    start = turning(graph, weights, full)
    damped = turning(graph, weights, spectral.prune(graph, weights, size=0.7))
    kept = turning(graph, weights, spectral.prune(graph, weights, goal="preserve", size=0.7))
    assert damped < 0.3 * start
    assert abs(kept - start) < 0.1 * start


@pytest.mark.slow  # test_spectral_trying.py compares gaps with greedy removal and with draws
def test_the_gap_stays_open():
    graph, weights = graph_of(20, 5, 2)

    def gap(mask):
        kept = mask.kept.numpy()
        index = graph.edge_index.numpy()[:, kept]
        values = spectral.spectrum((index, graph.num_nodes), weights[kept], "out").real
        return np.sort(values)[1]

    mask = spectral.prune(graph, weights, goal="gap", size=0.8)
    assert gap(mask) > max(by_chance(graph, mask.num_kept, gap))


def swept(index, weights, nodes, laplacian):
    """What the published rule leaves, by its description: ``[E]`` bool."""
    edges = {(u, v): number for number, (u, v) in enumerate(index.T.tolist())}
    cut = True
    while cut:
        cut = False
        for centre in range(nodes):
            matrix = np.zeros((nodes, nodes))
            for (u, v), number in edges.items():
                if centre in (u, v):
                    matrix[u, v] = -weights[number]
                    size = 1.0 if laplacian == "count" else weights[number]
                    matrix[u, u] += size
                    matrix[v, v] += size
            imaginary = np.linalg.eigvals(matrix).imag.tolist()
            pair = imaginary.index(min(imaginary)), imaginary.index(max(imaginary))
            if any(imaginary) and edges.pop(pair, None) is not None:
                cut = True
    return np.isin(np.arange(index.shape[1]), list(edges.values()))


@pytest.mark.parametrize("laplacian", ["count", "both"])
def test_the_published_rule_cuts_neighbours_in_the_list_only(laplacian):
    generator = np.random.default_rng(1)
    pairs = list(itertools.permutations(range(9), 2))
    graph = gp.ComputationalGraph.from_edges([(f"n{u}", f"n{v}") for u, v in pairs])
    index = graph.edge_index.numpy()
    removed = []
    for _ in range(5):
        weights = generator.uniform(-1, 1, len(pairs))
        with pytest.warns(UserWarning, match="depends on the numbering of nodes"):
            mask = spectral.prune(graph, weights, laplacian, variant="paper", size=1)
        assert mask.kept.tolist() == swept(index, weights, 9, laplacian).tolist()
        gone = index[:, ~mask.kept.numpy()]
        assert (gone[0] == gone[1] + 1).all()
        removed.append(gone.shape[1])
    assert 0 < max(removed) <= 8
    assert len(set(removed)) > 1


# ------------------------------------------------------------------ models


def language(dtype=torch.float32):
    module = tiny("gpt2", dtype=dtype)
    clean, corrupt = random_pair(module)
    n = len(clean)
    task = gp.Task.from_tensors(clean, corrupt, answer=[1] * n, distractor=[2] * n)
    return gp.wrap(module), task


def test_an_acyclic_graph_is_refused_and_feedback_closes_it():
    model, task = language()
    for method in (gp.SpectralPruning(), gp.SpectralScores()):
        with pytest.raises(gp.UnsupportedModelError, match=r"acyclic.*feedback=\[\('logits', 'inp"):
            (method.prune if hasattr(method, "prune") else method.score)(model, task)
    closed = {"feedback": [("logits", "input")]}
    mask = gp.SpectralPruning(**closed, size=0.5).prune(model, task)
    assert mask.num_kept == model.graph.num_edges // 2
    assert "\n" not in repr(mask)
    assert f"{mask.num_kept} of {model.graph.num_edges} edges" in repr(mask)
    scores = gp.SpectralScores(**closed).score(model, task)
    assert scores.graph is model.graph
    curve = gp.faithfulness_curve(model, task, scores, [0.2, 0.5, 1.0])
    assert np.isfinite(curve.cmd)
    table = spectral.feedback_dependence(model, task, gp.SpectralScores(**closed))
    torch.testing.assert_close(table.diagonal(), torch.ones(3, dtype=torch.float64))
    assert -1 <= float(table.min()) < 1
    with pytest.raises(gp.InputError, match="no node 'sink'"):
        gp.SpectralPruning(feedback=[("sink", "input")]).prune(model, task)


def test_message_norms_are_hugging_faces():
    model, task = language()
    norms = spectral.message_norms(model, task)
    seen = {}

    def hook(module, inputs, output):
        seen["m0"] = output.detach()

    handle = model.module.transformer.h[0].mlp.register_forward_hook(hook)
    try:
        (batch,) = task.batches()
        model.module(**batch.clean)
    finally:
        handle.remove()
    out = seen["m0"] - seen["m0"].mean(-1, keepdim=True)  # the norm takes the mean away
    plain, centred = seen["m0"].norm(dim=-1).mean(), out.norm(dim=-1).mean()
    edge = list(model.graph.edge_names).index("m0->logits")
    assert min(abs(norms[edge] - plain), abs(norms[edge] - centred)) < 1e-4


class Weighted(Rings):
    def edge_weights(self):
        return torch.linspace(-1, 1, self.graph.num_edges)


def weighted():
    far = gp.Metric("far", lambda out, batch, full: out.sum(-1), higher_is_better=True)
    return Weighted(seed=0), gp.Task(RingExamples(), far, name="rings")


def test_edges_with_weights_of_their_own():
    model, task = weighted()
    scores = spectral.Magnitude().score(model, task)
    torch.testing.assert_close(scores.values, torch.linspace(-1, 1, len(scores.values)).abs())
    assert gp.SpectralPruning(size=0.7).prune(model, task).num_kept == int(
        0.7 * model.graph.num_edges
    )
    with pytest.raises(gp.UnsupportedModelError, match="have none"):
        spectral.Magnitude(edge_weights="module").score(Rings(seed=0), task)


def test_a_size_is_said_to_the_method_or_to_fit():
    model, task = weighted()
    edges = model.graph.num_edges
    plain = gp.SpectralPruning(effort=0)
    assert plain.size is None
    assert plain.resolved().size == 0.8
    for method, size, kept in (
        (plain, None, int(0.8 * edges)),
        (plain, 0.5, int(0.5 * edges)),
        (plain, edges - 3, edges - 3),
        (gp.SpectralPruning(effort=0, size=edges - 2), None, edges - 2),
        (gp.SpectralPruning(effort=0, size=0.7), 0.7, int(0.7 * edges)),
    ):
        assert method.fit(model, task, size).mask.num_kept == kept
    said = gp.SpectralPruning(effort=0, size=0.7)
    for other in (0.5, edges - 3):
        with pytest.raises(gp.InputError, match=rf"size=0\.7.* also asked for size={other}:"):
            said.fit(model, task, other)
    with pytest.raises(gp.InputError, match="number of edges"):
        gp.SpectralPruning(size=True)


def test_the_published_rule_prunes_a_model():
    model, task = weighted()
    method = gp.SpectralPruning(laplacian="both", variant="paper", size=1)
    with pytest.warns(UserWarning, match="depends on the numbering of nodes"):
        found = method.fit(model, task)
    index = model.graph.edge_index.numpy()
    kept = swept(index, model.edge_weights().numpy(), model.graph.num_nodes, "both")
    assert found.mask.kept.tolist() == kept.tolist()
    assert not kept.all()
    assert found.notes["by"] == "paper"
    closed = gp.SpectralPruning(laplacian="both", variant="paper", feedback=[(0, 1)])
    with pytest.raises(gp.InputError, match="knows neither feedback nor fixed edges"):
        closed.fit(model, task)


def test_taylor_is_the_slope_towards_a_silent_edge():
    """Finite differences of the metric in the mask, under zero ablation."""
    model, task = language(torch.float64)
    scores = spectral.Taylor().score(model, task)
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("zero"))
    for edge in (0, 7, model.graph.num_edges - 1):
        mask = torch.ones(model.graph.num_edges, dtype=torch.float64)
        mask[edge] = 1 - 1e-5
        less = task.metric(model.run(batch, mask, reference), batch).mean()
        full = task.metric(reference.full, batch).mean()
        assert scores.values[edge].item() == pytest.approx(
            abs(float(full - less)) / 1e-5, rel=1e-3, abs=1e-6
        )


def test_effective_resistance_is_networkxs():
    graph, weights = graph_of(10, 4, 3)
    given = spectral.weighted_graph(graph, weights)
    found = spectral.effective_resistance(given)
    plain = nx.Graph()
    plain.add_nodes_from(range(graph.num_nodes))
    for (u, v), w in zip(graph.edge_index.T.tolist(), weights, strict=True):
        plain.add_edge(u, v, weight=plain.get_edge_data(u, v, {"weight": 0})["weight"] + w)
    for edge in range(0, graph.num_edges, 7):
        u, v = graph.edge_index[:, edge].tolist()
        other = nx.resistance_distance(plain, u, v, weight="weight", invert_weight=False)
        assert found[edge] == pytest.approx(other, rel=1e-6)


# ------------------------------------------------------------------ while learning


class Net(torch.nn.Module):
    def __init__(self, edges, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.edge_weight = torch.nn.Parameter(torch.randn(edges, generator=generator))
        self.register_buffer("edge_keep", torch.ones(edges, dtype=torch.bool))


@pytest.mark.parametrize("criterion", ["spectral", "magnitude"])
@pytest.mark.parametrize("schedule", ["linear", "cubic", "geometric"])
def test_schedules_are_met(criterion, schedule):
    graph, _ = graph_of(15, 4, 0)
    net = Net(graph.num_edges)
    pruning = spectral.DynamicPruning(
        net, graph.edge_index, 15, size=0.4, begin=2, end=10, every=2, schedule=schedule,
        criterion=criterion,
    )  # fmt: skip
    before = net.edge_weight.detach().clone()
    kept = []
    for _ in range(14):
        pruning.step()
        kept.append(int(net.edge_keep.sum()))
    assert kept[1] == graph.num_edges
    assert kept[-1] == int(0.4 * graph.num_edges)
    assert kept == sorted(kept, reverse=True)
    assert kept[3] == pruning.wanted(4)
    assert torch.equal(net.edge_weight, before)


def test_regrowth_brings_back_large_gradients_and_resumes():
    graph, _ = graph_of(15, 4, 0)
    runs = []
    for stop in (None, 4):
        net = Net(graph.num_edges)
        net.edge_weight.grad = torch.arange(graph.num_edges, dtype=torch.float32)
        options = {"size": 0.5, "end": 8, "regrow": 0.3, "criterion": "magnitude"}
        pruning = spectral.DynamicPruning(net, graph.edge_index, 15, **options)
        for call in range(8):
            if call == stop:
                state = pruning.state_dict()
                pruning = spectral.DynamicPruning(net, graph.edge_index, 15, **options)
                pruning.load_state_dict(state)
            pruning.step()
        assert int(net.edge_keep.sum()) == int(0.5 * graph.num_edges)
        runs.append((net.edge_keep.clone(), net.edge_weight.detach().clone()))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert bool((runs[0][1] == 0).any())  # what grew again began at 0


@pytest.mark.parametrize(
    ("edges", "settings", "message"),
    [
        (4, {}, r"must be \[3\], got"),
        (3, {"begin": 5, "end": 5}, "begin < end"),
        (3, {"regrow": 1.0}, "regrow is a share"),
        (3, {"schedule": "quick"}, "unknown schedule 'quick'"),
        (3, {"criterion": "local", "goal": "preserve"}, "'local' only damps"),
        (3, {"criterion": "size"}, "unknown criterion 'size'"),
        (3, {"goal": "calm"}, "unknown goal 'calm'"),
    ],
)
def test_bad_dynamic_input(edges, settings, message):
    with pytest.raises(gp.InputError, match=message):
        spectral.DynamicPruning(Net(edges), [[0, 1, 2], [1, 2, 0]], 3, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"goal": "calm"}, "unknown goal 'calm'; known: damp, preserve, gap"),
        ({"mode": "Local"}, "unknown mode 'Local'; did you mean 'local'"),
        ({"mode": "paper"}, "unknown mode 'paper'; known: global, local"),
        ({"variant": "published"}, "unknown variant 'published'"),
        ({"measure": "mean"}, "unknown measure 'mean'"),
        ({"degrees": "loud"}, "unknown degrees 'loud'"),
        ({"laplacian": "sym"}, "unknown laplacian 'sym'"),
        ({"feedback_weight": "big"}, "feedback_weight must be"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(gp.InputError, match=message):
        gp.SpectralPruning(**settings)


CORRECTED = "the rule that mode='local' corrects: give one of th"


@pytest.mark.parametrize(
    ("laplacian", "settings", "message"),
    [
        ("count", {"mode": "local", "goal": "gap"}, "only damps"),
        ("count", {"variant": "paper", "goal": "preserve"}, "only damps"),
        ("count", {"mode": "local", "variant": "paper"}, CORRECTED),
        ("out", {"variant": "paper"}, "published for laplacian='count' and 'both', got 'out'"),
        ("both", {"variant": "paper", "degrees": "absolute"}, "signed weights, got degrees='abs"),
    ],
)
def test_settings_that_contradict(laplacian, settings, message):
    graph, weights = graph_of(10, 3, 0)
    with pytest.raises(gp.InputError, match=message):
        spectral.prune(graph, weights, laplacian, **settings)
    with pytest.raises(gp.InputError, match=message):
        gp.SpectralPruning(laplacian=laplacian, **settings)


def test_graphs_and_efforts_that_are_refused():
    graph, weights = graph_of(10, 3, 0)
    with pytest.raises(gp.InputError, match="effort >= 0"):
        spectral.prune(graph, weights, effort=-1)
    with pytest.raises(gp.InputError, match="no cycle"):
        spectral.prune(gp.ComputationalGraph.from_edges([("a", "b")]), [1.0])


def test_pictures(tmp_path):
    graph, weights = graph_of(20, 4, 0)
    mask = spectral.prune(graph, weights, size=0.8)
    axes = spectral.plot(graph, weights, mask=mask, path=tmp_path / "s.png")
    assert [c.get_offsets().shape for c in axes.collections] == [(20, 2), (20, 2)]
    assert (tmp_path / "s.png").stat().st_size > 5000
