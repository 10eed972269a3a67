"""Tracr's compiled programs: the same numbers, every input, and circuits that are known."""

import itertools
import sys

import numpy as np
import pytest
import torch
from support.programs import PROGRAMS, cases, compiled, program
from support.toy import Toy

import graphprune as gp
from graphprune.adapters.rasp import cross_entropy, decode, every_input, tracr_outputs
from graphprune.conformance import check_adapter

pytest.importorskip("tracr", reason="Tracr is not installed: pip install 'graphprune[tracr]'")

# On these the circuit read off the weights is also a smallest one.
EXACT = [name for name in PROGRAMS if name not in ("dyck", "shuffle_dyck")]


def outputs_of(model, task, mask, ablation="zero"):
    """``{ids: [T, V]}`` of every example, through the public run alone."""
    found = {}
    for batch in task.batches():
        reference = model.reference(batch, gp.Ablation(ablation))
        out = model.run(batch, mask, reference)
        for ids, places, row in zip(batch.clean["input_ids"], batch.positions, out, strict=True):
            real = tuple(i for i in ids.tolist() if i != model.module.config.pad_id)
            # NaN where nothing is asked, which equals nothing: a comparison must leave it out.
            out = torch.full((len(real) - 1, row.shape[-1]), torch.nan, dtype=row.dtype)
            asked = places[places >= 0]
            out[asked - 1] = row[places >= 0]
            found[real] = out
    return found


def say_the_same(config, ours, theirs):
    asked = ~theirs.isnan().any(-1)
    ours, theirs = ours[asked], theirs[asked]
    if config.numerical:
        return bool(((ours - theirs).abs() <= 1e-3).all())
    return bool((ours.argmax(-1) == theirs.argmax(-1)).all())


def exact_by_hand(model, task, full, values):
    """Whether a mask gives every output, without anything of graphprune.evaluation."""
    config = model.module.config
    out = outputs_of(model, task, torch.as_tensor(values))
    return all(say_the_same(config, out[ids], full[ids]) for ids in full)


# ------------------------------------------------------------------ conversion


# Haiku compiles each program anew for each length, which takes longer than all the rest.
@pytest.mark.parametrize("name", cases(PROGRAMS, ["frac_prevs", "reverse"]))
def test_every_output_is_tracrs_own(name):
    """Masked runs of the whole graph against haiku's forward pass, on every input."""
    model, task = program(name)
    full = outputs_of(model, task, gp.EdgeMask.full(model.graph))
    config = model.module.config
    left_out = task.notes["without_output"]
    assert len(full) == len(task) == PROGRAMS[name].num_inputs - left_out
    assert set(full) <= {tuple(row) for row in every_input(config)}
    assert left_out == (3 if name in ("shift", "detect_pattern") else 0)
    for _, rows in itertools.groupby(sorted(full, key=len), key=len):
        ids = list(rows)
        theirs = tracr_outputs(compiled(name), ids)
        ours = model.module(torch.tensor(ids)).logits.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        masked = torch.stack([full[row] for row in ids]).numpy()
        asked = ~np.isnan(masked)
        np.testing.assert_allclose(masked[asked], theirs[:, 1:][asked], rtol=0, atol=1e-5)
        assert asked.mean() >= 0.5


@pytest.mark.parametrize("name", cases(["reverse", "frac_prevs", "dyck"]))
def test_decoded_outputs_are_tracrs_own(name):
    """Tracr's ``apply`` on tokens, its encoder and its decoder, on a few inputs."""
    model, task = program(name)
    config = model.module.config
    full = outputs_of(model, task, gp.EdgeMask.full(model.graph))
    for ids in list(full)[20 :: len(full) // 3]:
        want = compiled(name).apply([config.tokens[i] for i in ids]).decoded[1:]
        out = full[ids]
        if config.numerical:
            np.testing.assert_allclose(out[:, 0], want, atol=1e-5)
        else:
            assert [config.values[i] for i in decode(out)] == want


EXPECTED = {
    "reverse": lambda s: s[::-1],
    "frac_prevs": lambda s: [s[: i + 1].count("x") / (i + 1) for i in range(len(s))],
    "sort": sorted,
    "hist": lambda s: [s.count(t) for t in s],
    "length": lambda s: [len(s)] * len(s),
    "count": lambda s: [s.count("a")] * len(s),
    "sort_freq": lambda s: sorted(s, key=lambda t: -s.count(t)),
    "pair_balance": lambda s: [
        (s[: i + 1].count("(") - s[: i + 1].count(")")) / (i + 1) for i in range(len(s))
    ],
    "dyck": lambda s: [balanced(s)] * len(s),
}


@pytest.mark.parametrize("name", cases(EXPECTED))
def test_programs_do_what_they_say(name):
    """Against plain Python, on every input: the whole chain from RASP to the masked model."""
    model, task = program(name)
    config, function = model.module.config, EXPECTED[name]
    for ids, out in outputs_of(model, task, gp.EdgeMask.full(model.graph)).items():
        tokens = [config.tokens[i] for i in ids[1:]]
        if config.numerical:
            np.testing.assert_allclose(out[:, 0], function(tokens), atol=1e-3)
        else:
            assert [config.values[i] for i in decode(out)] == function(tokens), tokens


def test_positions_without_an_output_are_not_asked_for():
    """RASP's None: the first token has none before it."""
    model, task = program("shift")
    config = model.module.config
    for ids, out in outputs_of(model, task, gp.EdgeMask.full(model.graph)).items():
        assert out[0].isnan().all()
        assert [config.values[i] for i in decode(out[1:])] == [config.tokens[i] for i in ids[1:-1]]
    with pytest.raises(gp.InputError, match="no output at any position"):
        gp.adapters.tracr(compiled("shift"), inputs=["a", "b"])


def balanced(tokens):
    depth = list(itertools.accumulate(1 if t == "(" else -1 for t in tokens))
    return min(depth) >= 0 and depth[-1] == 0


def test_edges_are_counted_as_the_papers_are():
    """Edge Pruning's graphs of reverse and xproportion: 94 and 32 edges, two embedding nodes."""
    model, _ = program("reverse")
    config = model.module.config
    assert (model.layout.layers, model.layout.heads, len(config.directions)) == (4, 1, 41)
    assert (config.head_dim, config.mlp_hidden_size) == (12, 30)
    assert model.graph.num_edges == 94
    assert program("frac_prevs")[0].graph.num_edges == 32


def test_causal_programs():
    """Compiled causally, the same numbers again, and still no text to generate."""
    from tracr.compiler import compiling, lib
    from tracr.rasp import rasp

    sop = lib.make_frac_prevs(rasp.tokens == "a")
    causal = compiling.compile_rasp_to_model(sop, vocab={"a", "b"}, max_seq_len=3, causal=True)
    model, task = gp.adapters.tracr(causal)
    full = outputs_of(model, task, gp.EdgeMask.full(model.graph))
    for _, rows in itertools.groupby(sorted(full, key=len), key=len):
        ids = list(rows)
        ours = torch.stack([full[row] for row in ids]).numpy()
        np.testing.assert_allclose(ours, tracr_outputs(causal, ids)[:, 1:], atol=1e-5)
    batch = next(iter(task.batches(1)))
    with pytest.raises(gp.UnsupportedModelError, match="both directions"):
        model.generate_with(gp.EdgeMask.full(model.graph), batch.clean["input_ids"])


# ------------------------------------------------------------------ the task


def test_padding_changes_nothing():
    """Sequences of all lengths in one batch, against each alone, under a soft mask."""
    model, task = program("reverse")
    mask = torch.rand(94, generator=torch.Generator().manual_seed(0))
    for ablation in ("zero", "counterfactual"):
        together = next(iter(task.subset(range(0, 363, 24)).batches(16, shuffle=0)))
        assert together.clean["attention_mask"].min() == 0
        out = model.run(together, mask, model.reference(together, gp.Ablation(ablation)))
        for i, number in enumerate(together.indices):
            alone = next(iter(task.subset([number]).batches()))
            want = model.run(alone, mask, model.reference(alone, gp.Ablation(ablation)))[0]
            n = len(alone.positions[0])
            torch.testing.assert_close(out[i, :n], want[:n], rtol=0, atol=1e-9)


def test_corrupted_inputs_differ_everywhere():
    _, task = program("frac_prevs")
    for batch in task.batches():
        clean, corrupt = batch.clean["input_ids"], batch.corrupt["input_ids"]
        real = batch.clean["attention_mask"].bool()
        assert torch.equal(clean[:, 0], corrupt[:, 0])
        assert bool((clean != corrupt)[:, 1:][real[:, 1:]].all())
        assert torch.equal(clean[~real], corrupt[~real])


def test_given_inputs():
    model, task = gp.adapters.tracr(compiled("reverse"), inputs=[[3, 1, 2], [2]], name="two")
    assert (len(task), task.name) == (2, "two")
    full = outputs_of(model, task, gp.EdgeMask.full(model.graph))
    values = model.module.config.values
    assert [[values[i] for i in decode(out)] for out in full.values()] == [[2], [2, 1, 3]]


def test_bad_input():
    for inputs, message in (
        ([[1, 2, 9]], "input 0 holds 9; the program's tokens: 1, 2, 3"),
        ([[1], [1] * 6], "input 1 has 6 tokens; the program takes 1 to 5"),
        ([[]], "input 0 has 0 tokens"),
        ([], "inputs is empty"),
        ("every", "'all' or a list"),
    ):
        with pytest.raises(gp.InputError, match=message):
            gp.adapters.tracr(compiled("reverse"), inputs=inputs)
    with pytest.raises(gp.InputError, match="compile_rasp_to_model gives, got dict"):
        gp.adapters.tracr({})
    with pytest.raises(gp.InputError, match=r"gp\.adapters\.tracr\(compiled\) gives"):
        gp.adapters.tracr_truth(Toy())


def test_without_tracr(monkeypatch):
    monkeypatch.setitem(sys.modules, "tracr.compiler", None)
    with pytest.raises(gp.MissingExtraError, match=r"graphprune\[tracr\]"):
        PROGRAMS["hist"].compile()
    monkeypatch.setitem(sys.modules, "haiku", None)
    with pytest.raises(gp.MissingExtraError, match=r"graphprune\[tracr\]"):
        gp.adapters.tracr(compiled("reverse"))


def test_losses():
    """Zero at the full program, large where the output is wrong, and differentiable."""
    for name in ("reverse", "frac_prevs"):
        model, task = program(name)
        for batch in task.take(40).batches():
            reference = model.reference(batch, gp.Ablation("zero"))
            assert float(task.metric(reference.full, batch, reference.full).abs().max()) < 1e-9
            mask = torch.full((model.graph.num_edges,), 0.5, requires_grad=True)
            loss = task.metric(model.run(batch, mask, reference), batch, reference.full).mean()
            (slope,) = torch.autograd.grad(loss, mask)
            assert float(loss.detach()) > 0.05
            assert float(slope.abs().max()) > 1e-3
    model, task = program("reverse")
    batch = next(iter(task.batches()))
    full = model.reference(batch).full
    wrong = full.roll(1, -1)
    assert float(task.metric(wrong, batch, full).min()) > 5
    entropy = cross_entropy()
    assert float(entropy(full, batch).max()) < 1e-3
    assert float(entropy(wrong, batch).min()) > 5
    assert float(gp.evaluate(model, task, gp.EdgeMask.full(model.graph))["accuracy"]) == 1.0


def test_evaluation_of_numbers_claims_no_choices():
    model, task = program("frac_prevs")
    report = gp.evaluate(model, task, gp.EdgeMask.empty(model.graph), ablation="zero")
    assert report["squared_error"] > 0.01
    assert report["faithfulness"] == 0
    assert {"kl", "accuracy", "exact_match"} <= set(report.absent)


# ------------------------------------------------------------------ known circuits


@pytest.mark.parametrize("name", cases(EXACT))
def test_the_true_circuit_is_exact_and_minimal(name):
    """By brute force over every input, and by graphprune.evaluation: the same answers."""
    model, task = program(name)
    truth = gp.adapters.tracr_truth(model)
    full = outputs_of(model, task, gp.EdgeMask.full(model.graph))
    assert exact_by_hand(model, task, full, truth.values)
    for edge in torch.nonzero(truth.kept)[:, 0].tolist():
        less = truth.values.clone()
        less[edge] = 0
        assert not exact_by_hand(model, task, full, less), model.graph.edge_names[edge]
    assert gp.is_minimal(model, task, truth, ablation="zero")
    assert truth == truth.prune_dead_ends()


@pytest.mark.slow
def test_the_true_circuit_of_dyck_holds_two_edges_more():
    """Uniform attention over tokens gives a mean; over BOS too, a smaller one. Both are above 0.

    ``has_neg`` is the fraction of positions with a negative balance, and all that is asked of it is
    whether it is 0: the head's q and k matter to the variable, not to the program's output.
    """
    model, task = program("dyck")
    truth = gp.adapters.tracr_truth(model)
    more = gp.removable_edges(model, task, truth, ablation="zero")
    assert more.edges() == ["position->a4.h1<q>", "position->a4.h1<k>"]
    assert gp.equivalent(model, task, truth, ablation="zero")
    assert gp.is_minimal(model, task, truth - more, ablation="zero")


@pytest.mark.slow
def test_the_true_circuit_of_shuffle_dyck_holds_four_edges_more():
    """As dyck, and the length: it tells the last position, which up to four tokens can do without.

    Without its head ``length`` reads 4, so that only the longest inputs select their last position.
    """
    model, task = program("shuffle_dyck")
    truth = gp.adapters.tracr_truth(model)
    more = gp.removable_edges(model, task, truth, ablation="zero")
    assert more.edges() == [
        "input->a0.h0<v>",
        "a0.h0->m0",
        "position->a6.h0<q>",
        "position->a6.h0<k>",
    ]
    assert gp.equivalent(model, task, truth, ablation="zero")
    assert gp.is_minimal(model, task, truth - more, ablation="zero")


def test_wiring_of_reverse_is_the_program():
    """The labels say what RASP computes: length, opp_idx, opp_idx - 1, and the selected token."""
    model, task = program("reverse")
    wiring = gp.adapters.tracr_wiring(model, task)
    assert set(wiring) == set(gp.adapters.tracr_truth(model).edges())
    heads = {
        edge: sorted({label.split(":")[0] for label in labels}) for edge, labels in wiring.items()
    }

    def one(edge, start):
        assert len(heads[edge]) == 1
        assert heads[edge][0].startswith(start), heads[edge]

    one("m2->a3.h0<q>", "opp_idx-1")
    one("position->a3.h0<k>", "indices")
    one("input->a3.h0<v>", "tokens")
    one("a3.h0->logits", "reverse")
    one("m0->m1", "length")
    one("position->m1", "indices")
    one("m1->m2", "opp_idx")
    one("a0.h0->m0", "length")
    assert wiring["input->a0.h0<v>"] == ["tokens:compiler_bos"]


@pytest.mark.parametrize("name", cases(PROGRAMS, ["frac_prevs", "length"]))
def test_polishing_the_full_graph_finds_a_minimal_circuit(name):
    """The baseline: greedy deletion alone. It ends at a minimal circuit, checked by hand."""
    model, task = program(name)
    found = gp.minimal_circuit(model, task, gp.EdgeMask.full(model.graph), ablation="zero")
    full = outputs_of(model, task, gp.EdgeMask.full(model.graph))
    assert exact_by_hand(model, task, full, found.values)
    for edge in torch.nonzero(found.kept)[:, 0].tolist():
        less = found.values.clone()
        less[edge] = 0
        assert not exact_by_hand(model, task, full, less)
    if name in EXACT:
        assert gp.recovery(found, gp.adapters.tracr_truth(model)).exact


# ------------------------------------------------------------------ the contract


@pytest.mark.parametrize("name", cases(["reverse", "frac_prevs", "sort_freq"]))
def test_conformance(name):
    model, task = program(name)
    metric = task.metric if model.module.config.numerical else cross_entropy(1.0)
    check_adapter(model, task.with_metric(metric).subset(range(20, len(task), 7)))
