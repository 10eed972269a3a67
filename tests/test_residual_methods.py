"""Methods, evaluation, statistics, export and tasks on encoders and encoder-decoders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from support.cli import call, out_of
from support.residual_models import batch, model, reads
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import graphprune as gp
from graphprune.conformance import check_adapter, check_method
from graphprune.errors import InputError, UnsupportedModelError

KINDS = ("vit", "bert", "bert-classes", "t5", "bart")


def wrapped(name: str) -> gp.MaskedModel:
    return gp.wrap(model(name, dtype=torch.float32))


def task(name: str, size: int = 6) -> gp.Task:
    """Random pairs whose answer is what the model says, against what it says of the twin."""
    drawn = batch(name, size=3, dtype=torch.float32)
    clean, corrupt = ({k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in side.items()}
                      for side in (drawn.clean, drawn.corrupt))  # fmt: skip
    key = reads(name)[0]
    if key == "pixel_values":
        clean[key][3:] += 0.1
    else:
        clean[key][3:, 1] = (clean[key][3:, 1] - 3 + 1) % 20 + 3
    places = None if drawn.positions is None else drawn.positions.repeat(2)
    full = gp.wrap(model(name, dtype=torch.float32)).reference(
        replace(drawn, clean=clean, corrupt=corrupt, size=6, positions=places)
    )
    answer = full.full.argmax(-1)
    distractor = full.full.argmin(-1)
    return gp.Task.from_tensors(
        clean, corrupt, answer=answer, distractor=distractor, positions=places
    ).take(size)


@pytest.mark.parametrize("name", KINDS)
def test_the_contract_holds(name: str) -> None:
    outcomes = check_adapter(wrapped(name), task(name, 3))
    assert set(outcomes.values()) >= {"passed"}
    failed = {
        k: v for k, v in outcomes.items() if not v.startswith(("passed", "no ", "not tested"))
    }
    assert not failed


@pytest.mark.parametrize("name", ["vit", "bert", "bart"])
def test_methods_judge_and_save(name: str, tmp_path: Path) -> None:
    masked, prompts = wrapped(name), task(name)
    count = masked.graph.num_edges
    found = [
        gp.EAP().fit(masked, prompts, size=count // 2),
        gp.EAPIG(steps=2).fit(masked, prompts, size=count // 2),
        gp.NAP().fit(masked, prompts, size=count // 2),
        gp.EdgePruning(sparsity=0.5, steps=4).fit(masked, prompts),
        gp.ACDC(tau=1e-4).fit(masked, prompts),
    ]
    for result in found:
        assert result.mask is not None
        assert result.mask.num_kept < count
        assert result.mask.num_kept or result.remarks  # a threshold may remove every edge
        report = gp.evaluate(masked, prompts, result.mask)
        assert report["n_edges"] == result.mask.num_kept
    for scorer in (gp.RelP(), gp.InformationFlow()):
        assert bool(scorer.score(masked, prompts).values.any())
    for ablation in ("zero", "mean", "optimal"):
        if ablation == "optimal":
            result = gp.UGS(steps=2, ablation="optimal").fit(masked, prompts, size=0.5)
            assert result.mask is not None
            assert result.ablation.kind == "optimal"
            continue
        scores = gp.EAP(ablation=ablation).score(masked, prompts)
        assert bool(torch.isfinite(scores.values).all())
        assert bool(scores.values.any())
    curve = gp.faithfulness_curve(
        masked, prompts, gp.EAP().score(masked, prompts), sizes=[0.5, 1.0]
    )
    assert curve.to_frame()["faithfulness"].iloc[-1] == pytest.approx(1.0, abs=1e-3)
    circuit = gp.Circuit.from_result(found[0], model=masked, task=prompts)
    circuit.save(tmp_path / "circuit")
    again = gp.Circuit.load(tmp_path / "circuit")
    assert again.mask == circuit.mask
    assert again.graph == masked.graph
    assert circuit.to_networkx().number_of_edges() == circuit.mask.num_kept
    run = circuit.compile(masked, prompts)
    torch.testing.assert_close(run(), run())


def test_positions_and_gates_are_those_of_single_runs() -> None:
    masked, drawn = gp.wrap(model("bart")), batch("bart")
    graph, reference = masked.graph, masked.reference(drawn)
    first = lambda outputs: outputs[:, 0]  # noqa: E731
    gates = torch.ones(2, graph.num_nodes)
    gates[0, list(graph.input_nodes)] = 0.5
    gates[1, list(graph.input_nodes)] = 0.0
    both = masked.edge_gradients(drawn, first, reference, gates=gates)
    ends = masked.edge_gradients(drawn, first, reference, gates=gates[1:])
    # Where every embedding is the corrupted one, gradients are those of the corrupted run.
    turned = replace(drawn, clean=drawn.corrupt, corrupt=drawn.clean)
    there = masked.reference(turned)
    ones = torch.ones(graph.num_edges, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(masked.run(turned, ones, there)[:, 0].sum(), ones)
    torch.testing.assert_close(ends.edge, -slope)
    alone = masked.edge_gradients(drawn, first, reference, gates=gates[:1])
    torch.testing.assert_close(both.edge, (ends.edge + alone.edge) / 2)
    # A constant node passes no gradient on to what it read.
    fixed = torch.zeros(1, graph.num_nodes, dtype=torch.bool)
    node = graph.node_number["d.m1"]
    fixed[0, node] = True
    held = masked.edge_gradients(
        drawn, first, reference, gates=torch.ones(1, graph.num_nodes), constant=fixed
    )
    assert not bool(held.edge[graph.edge_index[1] == node].any())
    assert bool(held.edge[graph.edge_index[0] == node].any())


@pytest.mark.parametrize("method", [gp.RelP(), gp.InformationFlow()], ids=lambda m: m.label)
def test_methods_that_look_inside_conform(method: Any) -> None:
    for name in ("bert", "bart"):
        assert set(check_method(method, wrapped(name), task(name, 3)).values()) == {"passed"}


def test_edges_are_named_as_a_decoders() -> None:
    decoder = tf.GPT2LMHeadModel(
        tf.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=9, bos_token_id=0, eos_token_id=0)
    )
    assert wrapped("bert").graph == gp.wrap(decoder).graph
    names = list(wrapped("t5").graph.edge_names)
    assert "e.m1->d.c0.h1<k>" in names
    assert "d.input->d.c0.h0<q>" in names
    assert not any(name.startswith("e.") and name.endswith("d.c0.h1<q>") for name in names)


def test_half_precision_and_the_modules_state() -> None:
    module = model("bert", dtype=torch.bfloat16).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    masked, drawn = gp.wrap(module), batch("bert")
    mask = torch.rand(masked.graph.num_edges, requires_grad=True)
    masked.run(drawn, mask).float().sum().backward()
    assert mask.grad is not None
    assert bool(mask.grad.any())
    assert module.training
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all("forward" not in part.__dict__ for part in module.modules())
    assert all(torch.equal(value, before[k]) for k, value in module.state_dict().items())


def words(*names: str) -> Any:
    vocabulary = {
        w: i for i, w in enumerate(("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *names))
    }
    raw = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )  # fmt: skip
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="[UNK]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def test_texts_become_tasks() -> None:
    tokenizer = words("Paris", "Rome", "is", "in", "France", "Italy", "wet", "dry")
    records = [
        {"clean": "Paris is in [MASK]", "corrupt": "Rome is in [MASK]", "answer": "France",
         "distractor": "Italy"},
        {"clean": "Rome is [MASK] Italy", "corrupt": "Paris is [MASK] Italy", "answer": "in",
         "distractor": "is"},
    ]  # fmt: skip
    masked = gp.tasks.masked_tokens(tokenizer, records)
    drawn = next(masked.batches())
    assert drawn.positions.tolist() == [4, 3]
    assert drawn.answer.tolist() == [[9], [8]]
    assert gp.EAP().score(wrapped("bert"), masked).values.any()
    pairs = [{"clean": ("Paris is", "wet"), "corrupt": ("Paris is", "dry"), "answer": 0}]
    classes = next(gp.tasks.text_classes(tokenizer, pairs).batches())
    assert classes.clean["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
    told = [{"clean": "Paris", "corrupt": "Rome", "decoder": "in", "answer": "France"}]
    sequence = gp.tasks.sequences(tokenizer, told, 0, metric="top1_accuracy")
    drawn = next(sequence.batches())
    assert drawn.clean["decoder_input_ids"].tolist() == [[0, 8]]
    assert drawn.positions.tolist() == [1]
    assert wrapped("t5").reference(drawn).full.shape == (1, 23)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"clean": "Paris is in Rome"}], r"holds \[MASK\] 0 times"),
        ([{"clean": "Paris [MASK]", "corrupt": "[MASK] Paris"}], "other places"),
        ([{"clean": "Paris [MASK]", "corrupt": "in Paris [MASK]"}], "attention_mask"),
        ([{"clean": "Paris [MASK]", "answer": "in Rome"}], "of one token"),
        ([], "records are mappings"),
    ],
)
def test_records_that_do_not_fit_are_named(records: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        gp.tasks.masked_tokens(words("Paris", "Rome", "is", "in"), records)


def test_what_does_not_fit_is_refused() -> None:
    masked, drawn = wrapped("bert"), batch("bert", dtype=torch.float32)
    types = torch.zeros_like(drawn.clean["input_ids"])
    other = types.clone()
    other[:, 2:] = 1
    for changed, said in (
        (
            {"clean": drawn.clean | {"token_type_ids": other}},
            "differ",
        ),
        ({"clean": drawn.clean | {"inputs_embeds": torch.ones(3, 6, 16)}}, "inputs_embeds"),
        ({"clean": {"attention_mask": types}}, "lack input_ids"),
        ({"clean": drawn.clean | {"input_ids": types + 99}}, "vocabulary is 0 to 22"),
        ({"positions": torch.tensor([9, 9, 9])}, "0 to 5"),
        ({"answer": torch.tensor([[40]] * 3)}, "outputs are 0 to 22"),
        ({"corrupt": None}, "needs corrupted inputs"),
        ({"alignment": torch.ones(3, 6, 6)}, "span by span"),
    ):
        corrupt = changed.get("corrupt", drawn.corrupt)
        if "token_type_ids" in changed.get("clean", {}):
            corrupt = drawn.corrupt | {"token_type_ids": types}
        with pytest.raises(InputError, match=said):
            masked.reference(replace(drawn, **{**changed, "corrupt": corrupt}))
    with pytest.raises(InputError, match="decoder_input_ids"):
        wrapped("t5").reference(drawn)
    with pytest.raises(InputError, match="does not take these inputs"):
        wrapped("vit").reference(gp.Batch({"pixel_values": torch.ones(1, 3, 4, 4)}, None, 1))


def test_models_that_cannot_be_wrapped_say_why() -> None:
    for module, said in (
        (tf.ViTModel(model("vit").config), "has no vit"),
        (tf.BertForQuestionAnswering(model("bert").config), "has a head|has none"),
        (tf.DebertaV2ForMaskedLM(tf.DebertaV2Config(hidden_size=8, num_attention_heads=2,
         num_hidden_layers=1, intermediate_size=8, vocab_size=9, conv_kernel_size=3)),
         "failed the exactness check"),
    ):  # fmt: skip
        with pytest.raises(UnsupportedModelError, match=said):
            gp.wrap(module)
    module = model("bert")
    handle = module.bert.encoder.layer[0].register_forward_hook(lambda *args: None)
    with pytest.raises(UnsupportedModelError, match="forward hook"):
        gp.wrap(module)
    handle.remove()
    with pytest.raises(InputError, match="option"):
        gp.wrap(module, nodes="block")
    assert {"bert", "t5", "vit", "bart", "gpt2"} <= set(gp.supported()["transformers"])
    with pytest.raises(UnsupportedModelError, match=r"'bert'\) are not estimated"):
        gp.plan(module)
    family = gp.describe(module)
    assert "ResidualFamily(model_types=('bert',)" in str(family)
    assert gp.describe(gp.wrap(module, family=family)) == family


def test_the_command_line_takes_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tokenizer = words("Paris", "Rome", "is", "in", "France", "Italy", "wet", "dry")
    module, folder = model("bert", dtype=torch.float32), tmp_path / "bert"
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    records = [
        {"clean": f"{a} is in [MASK]", "corrupt": f"{b} is in [MASK]", "answer": c, "distractor": d}
        for a, b, c, d in (
            ("Paris", "Rome", "France", "Italy"),
            ("Rome", "Paris", "Italy", "France"),
            ("wet", "dry", "dry", "wet"),
            ("dry", "wet", "Paris", "Rome"),
        )
    ]
    prompts = tmp_path / "masked.jsonl"
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert call("info", "--model", folder, "--task", prompts, "--json") == 0
    facts = out_of(capsys)["model"]
    assert facts["architecture"] == "BertForMaskedLM"
    assert facts["family"].startswith("ResidualFamily(")
    options = ("--model", folder, "--task", prompts, "--method", "eap", "--size", "0.5", "-q")
    assert call("discover", *options, "--out", tmp_path / "circuit") == 0
    circuit = gp.Circuit.load(tmp_path / "circuit")
    assert circuit.graph == gp.wrap(module).graph
    assert 0 < circuit.mask.num_kept < 46
    assert call("export", tmp_path / "circuit", "--to", "mib", "--to", "html") == 0
    capsys.readouterr()
    model("vit", dtype=torch.float32).save_pretrained(tmp_path / "vit")
    assert call("info", "--model", tmp_path / "vit", "--json") == 0
    assert out_of(capsys)["model"]["architecture"] == "ViTForImageClassification"
    options = ("--model", tmp_path / "vit", "--task", prompts, "--method", "eap", "--size", "0.5")
    assert call("discover", *options, "--out", tmp_path / "none") == 2
    assert "tasks for models that read images are made in Python" in capsys.readouterr().err


def test_the_command_line_takes_an_encoder_decoder(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizer = words("Paris", "Rome", "is", "in", "wet", "dry")
    folder, prompts = tmp_path / "bart", tmp_path / "pairs.jsonl"
    model("bart", dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    names = ("Paris", "Rome", "wet", "dry")
    records = [
        {"clean": f"{a} is", "corrupt": f"{b} is", "decoder": "in", "answer": a, "distractor": b}
        for a in names for b in names if a != b
    ]  # fmt: skip
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert call("info", "--model", folder, "--task", prompts, "--json") == 0
    assert out_of(capsys)["task"]["tokens"] == {"least": 4, "median": 4, "most": 4}
    options = ("--model", folder, "--task", prompts, "--method", "eap", "--size", "0.5", "-q")
    assert call("discover", *options, "--held-out", "0", "--out", tmp_path / "circuit") == 0
    capsys.readouterr()
    with pytest.raises(InputError, match=r"start=model\.config"):
        gp.Task.from_jsonl(prompts, tokenizer)
    tokenizer.decoder_start_token_id = 2
    task = gp.Task.from_jsonl(prompts, tokenizer)
    batch = next(task.batches())
    assert batch.clean["decoder_input_ids"][0].tolist() == [2, 8]
    kept = gp.Circuit.load(tmp_path / "circuit")
    assert kept.graph == wrapped("bart").graph
    with pytest.raises(InputError, match=r"for gp\.tasks\.sequences"):
        gp.Task.from_pairs(records, tokenizer)
    with pytest.raises(InputError, match="'decoder' must be a text"):
        gp.Task.from_pairs([{"clean": "Paris", "decoder": 3}], tokenizer)
