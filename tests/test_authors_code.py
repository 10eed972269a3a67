"""Scores against the authors' own code, run once on models that a formula writes.

``golden/eap_ig.json`` and ``golden/relp.json`` hold its numbers (float64 models, float32 scores).
How they were made: github.com/hannamw/EAP-IG at 795f560 under TransformerLens 2.15.4, torch 2.13.0
and transformers 4.57.6; for RelP the same attribution over the TransformerLens that
github.com/FarnoushRJ/RelP carries at aa0e228. Weights are those of ``support.wavy``, brought over
by TransformerLens's ``convert_gpt2_weights`` and ``convert_llama_weights``; its logits then differ
from Hugging Face's by 1e-15 and 4e-7. Two things were replaced in the code that ran: tokens came as
they are instead of from a tokenizer, and its tensors stood on the CPU. The metric is the sum over
examples of the distractor's minus the answer's logit at the last position.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from support.tiny import Float64, random_pair, tiny
from support.wavy import ANSWERS, CLEAN, CORRUPT, DISTRACTORS, wavy_gpt2, wavy_llama

import graphprune as gp

GOLDEN = Path(__file__).parent / "golden"
MAKERS = {"gpt2": wavy_gpt2, "llama": wavy_llama}


def a_case(kind: str) -> tuple[gp.MaskedModel, gp.Task]:
    clean, corrupt = torch.tensor(CLEAN), torch.tensor(CORRUPT)
    task = gp.Task.from_tensors(clean, corrupt, answer=ANSWERS, distractor=DISTRACTORS)
    return gp.wrap(MAKERS[kind]()), task


def table(file: str, kind: str, name: str) -> dict[str, float]:
    found = json.loads((GOLDEN / file).read_text())[kind][name]
    assert len(found) > 6
    return found


def furthest(scores: gp.EdgeScores, want: dict[str, float]) -> float:
    """The largest difference, as a share of the largest score; all edges are the same."""
    got = scores.to_frame().set_index("edge").score
    assert set(got.index) == set(want)
    gap = max(abs(float(got[edge]) - value) for edge, value in want.items())
    return gap / max(map(abs, want.values()))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("name", "scorer"),
    [
        ("EAP", gp.EAP()),
        ("EAP-IG-inputs", gp.EAPIG(steps=5)),
        ("EAP-IG-activations", gp.EAPIG(steps=3, integrate="activations-reference")),
        ("clean-corrupted", gp.CleanCorrupted()),
        ("EAP-IG-inputs", gp.EAPIG(variant="paper")),
        ("EAP-IG-activations", gp.EAPIG(variant="paper-activations", steps=3)),
    ],
)
def test_edge_scores_are_those_of_the_authors_code(kind, name, scorer):
    model, task = a_case(kind)
    assert furthest(scorer.score(model, task), table("eap_ig.json", kind, name)) < 1e-5


@pytest.mark.parametrize("kind", MAKERS)
def test_the_published_parallel_ensemble_is_the_mean_of_the_authors_scores(kind):
    """As github.com/cisnlp/MIB-circuit-track has it, parallel/parallel.py: on no common scale."""
    model, task = a_case(kind)
    published = gp.ParallelEnsemble(variant="paper")
    labels = ["EAP", "EAPIG(variant='paper')", "EAPIG(variant='paper-activations')"]
    assert [member.label for member in published.scorers] == labels
    fewer = gp.EAPIG(variant="paper-activations", steps=3)  # as the file has it
    found = gp.ParallelEnsemble(variant="paper", scorers=[*published.scorers[:2], fewer])
    names = ["EAP", "EAP-IG-inputs", "EAP-IG-activations"]
    tables = [table("eap_ig.json", kind, name) for name in names]
    want = {edge: sum(one[edge] for one in tables) / 3 for edge in tables[0]}
    assert furthest(found.score(model, task), want) < 1e-5


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["EAP", "EAP-IG-inputs"])
def test_node_scores_are_those_of_the_authors_code(kind, name):
    """MLPs apart: there the authors multiply an output's change by the gradient at the input."""
    model, task = a_case(kind)
    scorer = gp.NAP() if name == "EAP" else gp.NAPIG(variant="paper")
    found = scorer.score_nodes(model, task)
    want = table("eap_ig.json", kind, f"node {name}")
    largest = max(map(abs, want.values()))
    mine = {n: float(found.values[model.graph.node_number[n]]) for n in want if n[0] != "m"}
    assert len(mine) == 5
    for node, value in mine.items():
        assert value == pytest.approx(want[node], abs=1e-5 * largest)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("frozen", [False, True])
def test_relevance_is_that_of_the_authors_code(kind, frozen):
    """To 3e-5 of the largest: their identity rule divides by x + 1e-6 sign(x)."""
    model, task = a_case(kind)
    variant = "paper-frozen-attention" if frozen else "paper"
    scores = gp.RelP(variant=variant).score(model, task)
    name = "frozen attention" if frozen else "default"
    assert furthest(scores, table("relp.json", kind, name)) < 3e-5
    attention = [i for i, e in enumerate(model.graph.edge_names) if e.endswith(("<q>", "<k>"))]
    reached = scores.values[attention] != 0
    assert not reached.any() if frozen else reached.double().mean() > 0.7


def scaled(norm):
    """An RMS or layer norm with its scale detached."""

    def forward(x):
        wanted = type(norm).forward(norm, x.detach())
        centre = x - x.mean(-1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else x
        eps = next(getattr(norm, n) for n in ("eps", "variance_epsilon") if hasattr(norm, n))
        scale = (centre.square().mean(-1, keepdim=True) + eps).rsqrt().detach()
        gain = norm.weight + 1.0 if "Gemma" in type(norm).__name__ else norm.weight
        out = centre * scale * gain
        out = out if getattr(norm, "bias", None) is None else out + norm.bias
        torch.testing.assert_close(out, wanted)
        return out

    return forward


def linear_act(act, x):
    return x * (act(x) / x).detach()


def half(mlp):
    """A gated MLP: the activation by its ratio, half of the product's gradient."""

    def forward(x):
        product = linear_act(mlp.act_fn, mlp.gate_proj(x)) * mlp.up_proj(x)
        return mlp.down_proj(product / 2 + (product / 2).detach())

    return forward


def ratio(mlp):
    """GPT-NeoX's MLP."""
    return lambda x: mlp.dense_4h_to_h(linear_act(mlp.act, mlp.dense_h_to_4h(x)))


@pytest.mark.parametrize("family", ["qwen3", "olmo2", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("frozen", [False, True])
def test_relevance_of_nodes_by_autograd_of_a_module_with_the_rules(family, frozen, monkeypatch):
    """Hugging Face's own model, its norms, gates and attention rewritten with ``detach``.

    A node's edges sum to its message's change times the gradient there; norms of q and k too follow
    the LN-rule.
    """
    module = tiny(family, dtype=torch.float64)
    with Float64():
        clean, corrupt = random_pair(module)
        task = gp.Task.from_tensors(clean, corrupt, answer=[1] * 3, distractor=[2] * 3)
        scores = gp.RelP(freeze_attention=frozen).score(gp.wrap(module), task)
        base = module.gpt_neox if family == "gpt_neox" else module.model
        kind = type(module).__module__
        eager = sys.modules[kind].eager_attention_forward

        def attention(unit, query, key, value, mask, **options):
            if frozen:
                query, key = query.detach(), key.detach()
            return eager(unit, query, key, value, mask, **options)

        monkeypatch.setattr(sys.modules[kind], "eager_attention_forward", attention)
        module.config._attn_implementation = "eager"
        for part in module.modules():
            name = type(part).__name__
            if "Norm" in name:
                monkeypatch.setattr(part, "forward", scaled(part))
            elif name.endswith("MLP") and hasattr(part, "gate_proj"):
                monkeypatch.setattr(part, "forward", half(part))
            elif name.endswith("MLP"):
                monkeypatch.setattr(part, "forward", ratio(part))
        sent = {}

        def keep(name):
            def hook(_, args, out):
                out.retain_grad()
                sent.setdefault(name, []).append(out)

            return hook

        first = base.layers[0]
        after = "post_feedforward_layernorm"
        source = getattr(first, after) if hasattr(first, after) else first.mlp
        table = module.get_input_embeddings()
        hooks = [
            table.register_forward_hook(keep("input")),
            source.register_forward_hook(keep("m0")),
        ]
        for ids in (clean, corrupt):
            out = module(ids).logits[:, -1]
            if ids is clean:
                (out[:, 1] - out[:, 2]).sum().backward()
        for hook in hooks:
            hook.remove()
        graph = gp.wrap(tiny(family)).graph
        for name, (ours, other) in sent.items():
            want = float(((ours - other).detach() * ours.grad).sum()) / 3
            leaving = graph.edge_index[0] == graph.node_number[name]
            assert float(scores.values[leaving].sum()) == pytest.approx(want, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("variant", "turn_heads", "turn_names"),
    [
        ("paper", False, False),
        ("paper-reversed-heads", True, False),
        ("paper-reversed-senders", False, True),
    ],
)
def test_the_orders_of_acdcs_code(variant, turn_heads, turn_names):
    """Written out by hand.

    Read in github.com/ArthurConmy/Automatic-Circuit-Discovery (bc99ace), TLACDCExperiment.py and
    TLACDCCorrespondence.py: readers as their hooks fire, backwards, heads from the last; senders as
    they were put into the graph, which is backwards too, by name (a layer's MLP, its heads, the
    embedding last). ``indices_mode`` turns the heads of a name round, ``names_mode`` the names.
    """
    graph = gp.wrap(tiny("gpt2")).graph
    writers = [n.name for n in graph.nodes]
    count = 1 + max(n.index for n in graph.nodes if n.name.startswith("a0"))
    assert 2 * (count + 1) + 2 == len(writers)  # two layers, the embedding, and the output
    heads = sorted(range(count), reverse=not turn_heads)
    names = [["m1"], [f"a1.h{h}" for h in heads], ["m0"], [f"a0.h{h}" for h in heads], ["input"]]
    if turn_names:
        names.reverse()
    readers = [("logits", {"m1", "a1", "m0", "a0", "input"})]
    for layer, before in ((1, {"m0", "a0", "input"}), (0, {"input"})):
        readers.append((f"m{layer}", before | {f"a{layer}"}))
        for kind in "vkq":
            for head in range(count - 1, -1, -1):
                readers.append((f"a{layer}.h{head}<{kind}>", before))
    want = [
        f"{sender}->{reader}"
        for reader, known in readers
        for group in names
        for sender in group
        if sender.split(".")[0] in known
    ]
    order = gp.ACDC(variant=variant).edge_order(graph)
    assert [graph.edge_names[e] for e in order.tolist()] == want
