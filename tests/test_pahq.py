"""PAHQ and RTN-Q against their definition, and screening in low precision against ACDC."""

import itertools
import re

import pytest
import torch
from support.greedy import brute_force, mean_loss
from support.lowering import PAPER, rtn
from support.marks import quick
from support.tiny import SMALL, random_pair, tiny
from support.toy import Toy, ToyExamples

import graphprune as gp

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox"]
COARSE = gp.PrecisionPolicy({"head": "int4", "mlp": "int8"}, emulate=True)


def system(family, dtype=torch.float64):
    module = tiny(family, dtype=dtype, **SMALL[family])
    clean, corrupt = random_pair(module)
    ids = torch.ones(len(clean), 1, dtype=torch.int64)
    return gp.wrap(module), gp.Task.from_tensors(clean, corrupt, answer=ids, metric="kl")


def investigated(name, graph):
    """Names of the nodes that are float32 while edges into ``name`` are tried, read off names."""
    found = re.fullmatch(r"a(\d+)\.(h|kv)(\d+)", name)
    if found is None:
        return ()
    layer, kind, index = int(found[1]), found[2], int(found[3])
    names = {node.name for node in graph.nodes}
    heads = sum(n.startswith(f"a{layer}.h") for n in names)
    groups = sum(n.startswith(f"a{layer}.kv") for n in names)
    if not groups:
        return (name,)
    share = heads // groups
    if kind == "h":
        return (name, f"a{layer}.kv{index // share}")
    return (name, *(f"a{layer}.h{h}" for h in range(index * share, (index + 1) * share)))


def defined(model, task, policy, tau, *, raised=investigated):
    """The circuit by whole runs of separate models, one for each component."""
    known = {}
    order = gp.ACDC().edge_order(model.graph)

    def at(edge):
        reader = model.graph.nodes[int(model.graph.edge_index[1, edge])].name
        names = raised(reader, model.graph)
        key = tuple(sorted(names))
        if key not in known:
            low = model.at_precision(policy.with_nodes(dict.fromkeys(names, "fp32")))
            known[key] = mean_loss(low, task, "kl")
        return known[key]

    return brute_force(None, model.graph, order, tau, at=at), known


CASES = list(itertools.product(FAMILIES, (PAPER, COARSE)))


@pytest.mark.parametrize(("family", "policy"), quick(CASES, [("gpt2", PAPER), ("llama", COARSE)]))
def test_pahq_is_its_definition(family, policy):
    model, task = system(family)
    for tau in (1e-4, 2e-3):
        want, known = defined(model, task, policy, tau)
        assert len(known) > 3
        for exact in ("speculative", "sequential"):
            rule = gp.PAHQ(tau=tau, policy=policy, exact=exact)
            assert torch.equal(rule.prune(model, task).values.bool(), want), (tau, exact)


@pytest.mark.parametrize("bits", [4, 8])
def test_rtnq_is_its_definition(bits):
    model, task = system("llama")
    want, known = defined(model, task, rtn(bits), 1e-3, raised=lambda reader, graph: ())
    assert len(known) == 1
    assert torch.equal(gp.RTNQ(tau=1e-3, bits=bits).prune(model, task).values.bool(), want)


class CoarseToy(Toy):
    """Units whose weights may be rounded to multiples of a quarter: another adapter's own kinds."""

    lowered = None
    precision_defaults = gp.precision.PrecisionDefaults(
        gp.PrecisionPolicy({"node": "int4"}), rounded=("node",), raised=("node",)
    )

    def at_precision(self, policy):
        low = CoarseToy()
        low.module.load_state_dict(Toy().module.state_dict())
        for node, weight in zip(self.graph.nodes, low.module.weight, strict=True):
            if policy.of(node.name, node.kind) != "fp32":
                with torch.no_grad():
                    weight.copy_((4 * weight).round() / 4)
        return low


def test_an_adapter_says_which_nodes_take_which_precision():
    model, task = CoarseToy(), gp.Task(ToyExamples(), "kl", name="toy")
    assert {node.kind for node in model.graph.nodes} == {"node"}
    circuits = []
    for tau in (1e-3, 1e-2, 0.1):
        want, known = defined(
            model,
            task,
            model.precision_defaults.policy,
            tau,
            raised=lambda reader, graph: (reader,),
        )
        assert len(known) > 2
        got = gp.PAHQ(tau=tau).fit(model, task)
        assert torch.equal(got.mask.values.bool(), want)
        assert got.notes["precision"]["policy"]["kinds"] == {"node": "int4"}
        assert got.notes["precision"]["raised"] == ["node"]
        circuits.append(got.mask == gp.ACDC(tau=tau).prune(model, task))
    assert not all(circuits)  # rounding decides somewhere


def test_a_transformers_defaults_are_the_papers():
    model, task = system("llama")
    said = gp.PAHQ(tau=1e-3, policy=PAPER, raised=("head", "kv")).fit(model, task)
    found = gp.PAHQ(tau=1e-3).fit(model, task)
    assert found.mask == said.mask
    assert found.notes["precision"] == said.notes["precision"]
    assert model.precision_defaults.policy == PAPER


@pytest.mark.parametrize("family", quick(FAMILIES, ["llama"]))
def test_screening_gives_acdcs_circuits(family):
    """Four bits alone change decisions; rechecked they change none."""
    model, task = system(family, torch.float32)
    taus = [1e-5, 1e-4, 1e-3, 1e-2]
    plain = gp.ACDC().sweep(model, task, taus)
    coarse = gp.RTNQ(bits=4).sweep(model, task, taus)
    screened = gp.RTNQ(bits=4, recheck="float64").sweep(model, task, taus)
    pahq = gp.PAHQ(recheck="float64").sweep(model, task, taus)
    assert any(coarse[tau].mask != plain[tau].mask for tau in taus)
    for tau in taus:
        assert screened[tau].mask == plain[tau].mask, tau
        assert pahq[tau].mask == plain[tau].mask, tau
    assert pahq[taus[0]].notes["rechecks"] > 0


def test_a_policy_of_float32_is_acdc():
    model, task = system("qwen2", torch.float32)
    rule = gp.PAHQ(tau=1e-3, policy=gp.PrecisionPolicy())
    assert rule.prune(model, task) == gp.ACDC(tau=1e-3).prune(model, task)


def test_raising_a_head_rounds_its_layer_alone():
    model, _ = system("gpt2", torch.float32)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    low = model.at_precision(PAPER)
    high = low.at_precision(PAPER.with_nodes({"a1.h0": "fp32"}))
    fresh = model.at_precision(PAPER.with_nodes({"a1.h0": "fp32"}))
    others = {name: m for name, m in high.module.named_modules() if "Rounded" in type(m).__name__}
    shared = [n for n, m in others.items() if m is low.module.get_submodule(n)]
    assert any(".1.attn" in name for name in others)
    assert set(others) - set(shared) == {n for n in others if ".1.attn" in n}
    for (name, one), other in zip(
        high.module.state_dict().items(), fresh.module.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert high.lowered == fresh.lowered
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_run_goes_on_and_keeps_its_policy(tmp_path):
    model, task = system("gpt2")
    whole = gp.PAHQ(tau=1e-3).prune(model, task)
    folder = tmp_path / "run"
    while (part := gp.PAHQ(tau=1e-3, max_evaluations=16, run_dir=folder).fit(model, task)).stopped:
        pass
    assert part.mask == whole
    assert part.notes["evaluations"] > 32
    with pytest.raises(gp.InputError, match=r"policy\.kinds\.head was fp8, is int4"):
        gp.PAHQ(tau=1e-3, policy=COARSE, run_dir=folder).fit(model, task)


def test_bad_input():
    task = gp.Task(ToyExamples(), "kl", name="toy")
    with pytest.raises(gp.UnsupportedModelError, match="needs copies in low precision"):
        gp.PAHQ(tau=0.1).prune(Toy(), task)
    with pytest.raises(gp.InputError, match="policy is a PrecisionPolicy, got str"):
        gp.PAHQ(policy="fp8")
    with pytest.raises(gp.InputError, match="list of kinds"):
        gp.PAHQ(raised="head")
    with pytest.raises(gp.InputError, match="8 or 4 bits, got 3"):
        gp.RTNQ(bits=3)
    model, task = system("gpt2")
    with pytest.raises(gp.UnsupportedModelError, match="refuses emulation"):
        gp.PAHQ(policy=gp.PrecisionPolicy({"head": "fp8"}, emulate=False)).prune(model, task)
    with pytest.raises(gp.InputError, match="kind 'heads'"):
        gp.PAHQ(policy=gp.PrecisionPolicy({"heads": "fp8"})).prune(model, task)
