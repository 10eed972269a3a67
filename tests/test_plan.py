"""Plans: sizes against wrapped models, products against a counter, memory against what is held."""

from __future__ import annotations

import json

import pytest
from support.cli import call, out_of, save_model
from support.tiny import FAMILIES, tiny
from transformers import GPT2Config, LlamaConfig

import graphprune as gp

ELSEWHERE = gp.Throughput(flops=1e12, bandwidth=1e11)
SMALL = LlamaConfig(
    hidden_size=64, intermediate_size=176, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=2, vocab_size=500,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_wrapped_model(family):
    module = tiny(family)
    model = gp.wrap(module)
    made = gp.plan(module.config, throughput=ELSEWHERE, device="cpu", tokens=5)
    assert (made.edges, made.nodes) == (model.graph.num_edges, model.graph.num_nodes)
    assert made.parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("kind", "layers", "heads", "kv_heads", "embeddings", "edges"),
    [
        (GPT2Config, 24, 16, None, 2, 233_054),  # GPT-2 medium
        (LlamaConfig, 30, 9, 3, 1, 70_651),  # SmolLM2-135M, native key/value heads
        (LlamaConfig, 30, 9, 9, 1, 123_211),  # the same, ungrouped
    ],
)
def test_edge_counts_follow_the_closed_formula(kind, layers, heads, kv_heads, embeddings, edges):
    grouped = {} if kv_heads is None else {"num_key_value_heads": kv_heads}
    config = kind(
        num_hidden_layers=layers, num_attention_heads=heads, hidden_size=16 * heads, **grouped
    )
    made = gp.plan(config, throughput=ELSEWHERE, device="cpu", embedding_nodes=embeddings)
    assert made.edges == edges


def test_published_edge_counts():
    made = gp.plan(GPT2Config(), throughput=ELSEWHERE, device="cpu")
    assert made.edges == 32_491
    both = gp.plan(GPT2Config(), throughput=ELSEWHERE, device="cpu", embedding_nodes=2)
    assert both.edges == 32_936
    llama = LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40,
        vocab_size=32016,
    )  # fmt: skip
    large = gp.plan(llama, throughput=ELSEWHERE, device="cuda", dtype="bfloat16")
    assert large.edges == 3_877_661
    assert large.parameters == 13_016_028_160


def test_memory_grows_linearly_with_depth():
    def over(layers):
        config = GPT2Config(n_layer=layers)
        made = gp.plan(config, batch_size=8, tokens=16, throughput=ELSEWHERE, device="cuda")
        return sum(p.bytes for p in made.memory if p.name in ("Delta", "reference", "kept graphs"))

    assert over(24) - over(12) == pytest.approx(2 * (over(12) - over(6)), rel=1e-3)


def test_totals_add_up_and_references_are_kept_where_they_fit():
    settings = {"steps": 100, "examples": 64, "batch_size": 8, "throughput": ELSEWHERE}
    kept = gp.plan(SMALL, device="cpu", **settings)
    anew = gp.plan(SMALL, device="cpu", cache_bytes=0, **settings)
    assert kept.cached
    assert not anew.cached
    each, reference = kept.seconds["step"], kept.seconds["reference"]
    assert kept.seconds["total"] == pytest.approx(100 * each + 8 * reference)
    assert anew.seconds["total"] == pytest.approx(100 * (each + reference))
    assert kept.peak > anew.peak
    assert "whole run" in str(kept)
    json.dumps(kept.to_dict())


def test_masks_for_each_example_cost_memory():
    shared = gp.plan(SMALL, method="edge-pruning", throughput=ELSEWHERE, device="cpu")
    each = gp.plan(SMALL, method="ugs", copies=2, throughput=ELSEWHERE, device="cpu")
    assert each.over_model > shared.over_model


EVERY = [
    "acdc", "calibrated-ranking", "clean-corrupted", "eap", "eap-ig", "edge-pruning",
    "exact-patching", "hybrid-ensemble", "information-flow", "integrated-mask-gradient",
    "matryoshka", "nap", "nap-ig", "pahq", "parallel-ensemble", "random", "relp", "rtn-q",
    "sequential-ensemble", "subnetwork-probing", "ugs", "uniform-gradient-sampling",
]  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_every_method_that_runs_the_model_has_a_plan(name):
    made = gp.plan(SMALL, method=name, throughput=ELSEWHERE, batch_size=4, tokens=8, examples=10)
    assert made.peak >= 4 * made.parameters
    assert bool(made.passes) == (name != "random")
    assert made.seconds["total"] == pytest.approx(sum(p.seconds for p in made.passes))
    assert "whole run" in str(made)
    json.dumps(made.to_dict())


def test_an_ensemble_is_the_sum_of_its_members():
    settings = {"throughput": ELSEWHERE, "batch_size": 4, "tokens": 8, "examples": 10}
    both = gp.plan(SMALL, method=gp.ParallelEnsemble([gp.EAP(), gp.EAPIG(steps=7)]), **settings)
    alone = [gp.plan(SMALL, method=m, **settings) for m in (gp.EAP(), gp.EAPIG(steps=7))]
    assert both.seconds["total"] == pytest.approx(sum(p.seconds["total"] for p in alone))
    assert both.peak == max(p.peak for p in alone)
    assert [(p.owner, p.kind, p.count) for p in both.passes] == [
        ("EAP", "attribution", 3), ("EAPIG", "attribution", 3),
    ]  # fmt: skip


def test_more_points_take_time_and_no_more_memory():
    def made(points):
        return gp.plan(SMALL, method=gp.EAPIG(steps=points), throughput=ELSEWHERE)

    assert made(50).peak == made(10).peak
    assert made(50).seconds["total"] > 4 * made(10).seconds["total"]


def test_a_device_elsewhere_has_none_of_this_processs_bytes():
    elsewhere = gp.plan(SMALL, throughput=ELSEWHERE)
    here = gp.plan(SMALL, throughput=ELSEWHERE, device="cpu")
    mine = {"not handed back", "work space", "copied operands"}
    assert mine.isdisjoint(p.name for p in elsewhere.memory)
    assert "work space" in {p.name for p in here.memory}
    assert elsewhere.peak < here.peak


@pytest.mark.parametrize("method", ["eap", "eap-ig", "acdc", "information-flow"])
def test_other_passes_are_measured_on_the_device_too(method):
    made = gp.plan(SMALL, method=method, batch_size=2, tokens=8, device="cpu", examples=2)
    assert 0 < made.seconds["step"] < 10
    assert made.seconds["total"] >= made.seconds["step"]


def test_calibration_measures_the_device():
    made = gp.plan(SMALL, batch_size=2, tokens=8, device="cpu")
    assert 0 < made.seconds["gates"] < made.seconds["step"] < 10
    assert made.seconds["calibration"] > made.seconds["step"]


@pytest.mark.parametrize(
    ("subject", "options", "message"),
    [
        (SMALL, {"batch_size": 0}, "batch_size must be an integer of at least 1"),
        (SMALL, {"method": "eapp"}, "plan: unknown method 'eapp'"),
        (SMALL, {"method": "magnitude"}, "works on a graph alone"),
        (SMALL, {"method": "eap", "steps": 3}, "does not take these settings"),
        (SMALL, {"dtype": "int8"}, "unknown dtype 'int8'"),
        (SMALL, {"device": "warp"}, "the device 'warp' cannot be used"),
        (SMALL, {"depth": 3}, "unknown option of a language model's plan 'depth'"),
        (SMALL, {"embedding_nodes": 2}, "needs a position table"),
        (object(), {}, "no adapter can plan for object"),
    ],
)
def test_bad_input(subject, options, message):
    with pytest.raises(gp.GraphPruneError, match=message):
        gp.plan(subject, **{"throughput": ELSEWHERE, "device": "cpu", **options})
    with pytest.raises(gp.InputError, match="must be positive"):
        gp.Throughput(0, 1)


def test_command_line_reads_the_configuration_alone(tmp_path, capsys):
    folder = save_model(tmp_path / "tiny")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    base = ("plan", "--model", folder, "--batch-size", 2, "--tokens", 8, "--device", "cpu")
    assert call(*base, "--json") == 0
    document = out_of(capsys)
    assert document["model"] == "tiny"
    assert document["edges"] == gp.wrap(tiny("llama")).graph.num_edges
    assert document["seconds"]["calibration"] > 0
    assert call(*base, "--flops", "1e14", "--bandwidth", "1e12") == 0
    said = capsys.readouterr()
    assert "memory at the peak" in said.out
    assert call(*base, "--flops", "1e14") == 2
    assert "go together" in capsys.readouterr().err
    assert call("plan", "--model", tmp_path / "nowhere" / "x") == 2
    assert "not there" in capsys.readouterr().err
