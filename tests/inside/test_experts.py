"""Mixtures of experts as nodes: masked runs against the layers' own modules, edge by edge."""

import warnings

import pytest
import torch
from support import causal_models
from torch.nn import functional as F

import graphprune as gp
from graphprune.errors import UnsupportedModelError

EXPERTS = 4


def gated(mlp, x):
    """The router's weights and choice, of models whose router is called ``gate``."""
    _, weights, chosen = mlp.gate(x)
    return chosen, weights


def routed(mlp, x):
    _, weights, chosen = mlp.router(x)
    return chosen, weights


# type -> its router, what stands beside its experts, and settings that give it experts
KINDS = {
    "mixtral": (gated, None, {}),
    "qwen3_moe": (gated, None, {"decoder_sparse_step": 1, "mlp_only_layers": []}),
    "qwen2_moe": (
        gated,
        lambda mlp, x: F.sigmoid(mlp.shared_expert_gate(x)) * mlp.shared_expert(x),
        {"decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "gpt_oss": (routed, None, {}),  # experts with biases, behind a pair
    "deepseek_v3": (gated, lambda mlp, x: mlp.shared_experts(x), {"first_k_dense_replace": 1}),
}


def built(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return causal_models.build(kind, dtype=torch.float64, **KINDS[kind][2])


def pair(seed=3):
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = torch.randint(64, (2, 2, 7), generator=generator)
    return clean, corrupt, gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, 2)


class SlowMixture:
    """Masked runs by definition: each reader's sum edge by edge, then the user's own modules.

    Attention is one node; ``sources`` and ``targets`` name an edge's ends.
    """

    def __init__(self, module, kind):
        self.module, (self.route, self.beside, _) = module, KINDS[kind]
        self.layers, self.calls = module.model.layers, []

        def keep(_, args, kwargs):
            rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            self.calls.append((args if len(rest) < len(kwargs) else args[1:], rest))

        handles = [
            layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True)
            for layer in self.layers
        ]
        with torch.no_grad():
            module(input_ids=pair()[0])
        for handle in handles:
            handle.remove()

    def sent(self, ids, read):
        """All messages by name; ``read(messages, reader)`` is what a reader's stream is."""
        messages = {"input": self.module.model.embed_tokens(ids)}
        for i, (layer, call) in enumerate(zip(self.layers, self.calls, strict=True)):
            x = layer.input_layernorm(read(messages, f"a{i}"))
            attended = layer.self_attn(x, *call[0], **call[1])[0]
            self.mlp(layer, i, messages | {f"a{i}": attended}, read, new := {})
            messages |= {f"a{i}": attended} | new
        return messages

    def mlp(self, layer, i, messages, read, new):
        def at(name):
            return layer.post_attention_layernorm(read(messages, f"m{i}{name}")).flatten(0, 1)

        if not hasattr(layer.mlp, "experts"):
            new[f"m{i}"] = layer.mlp(at("")).view(messages["input"].shape)
            return
        router = at(".router")
        if "Deepseek" in type(layer).__name__:
            router = router[None]
        chosen, weights = self.route(layer.mlp, router)
        chosen, weights = (x.view(-1, x.shape[-1]) for x in (chosen, weights))
        for e in range(EXPERTS):
            out = layer.mlp.experts(at(f".e{e}"), chosen, weights * (chosen == e))
            new[f"m{i}.e{e}"] = out.view(messages["input"].shape)
        if self.beside is not None:
            out = self.beside(layer.mlp, at(".shared"))
            new[f"m{i}.shared"] = out.view(messages["input"].shape)

    def run(self, values, clean, corrupt):
        """Last logits where an edge between two names counts ``values[source, target]``."""
        other = self.sent(corrupt, lambda messages, _: sum(messages.values()))

        def read(messages, target):
            return sum(
                other[s] + values.get((s, target), 1.0) * (x - other[s])
                for s, x in messages.items()
            )

        final = read(self.sent(clean, read), "logits")
        return self.module.lm_head(self.module.model.norm(final))[:, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_experts_and_routers_equal_the_modules_edge_by_edge(kind):
    module = built(kind)
    model = gp.wrap(module, experts=True, nodes="block")
    names = [node.name for node in model.graph.nodes]
    assert {"m2.router", *(f"m2.e{e}" for e in range(EXPERTS))} <= {*names}
    assert ("m2.shared" in names) == (KINDS[kind][1] is not None)
    sources, targets = ([names[n] for n in row] for row in model.graph.edge_index.tolist())
    assert "m2.router" in targets
    assert "m2.router" not in sources
    slow, (clean, corrupt, batch) = SlowMixture(module, kind), pair()
    drawn = torch.rand(model.graph.num_edges, generator=torch.Generator().manual_seed(5)).double()
    reference = model.reference(batch)
    for mask in (torch.ones_like(drawn), torch.zeros_like(drawn), drawn, (drawn < 0.4).double()):
        leaf, theirs = mask.clone().requires_grad_(True), mask.clone().requires_grad_(True)
        values = {ends: theirs[e] for e, ends in enumerate(zip(sources, targets, strict=True))}
        got, want = model.run(batch, leaf, reference), slow.run(values, clean, corrupt)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        weights = torch.linspace(-1, 1, got.shape[-1], dtype=got.dtype)
        (mine,) = torch.autograd.grad((got * weights).sum(), leaf)
        (his,) = torch.autograd.grad((want * weights).sum(), theirs)
        torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-5 * float(his.abs().max()))
        if mask is not drawn:
            sparse = model.run(batch, mask, reference, sparse=True)
            torch.testing.assert_close(sparse, want.detach(), rtol=1e-5, atol=1e-5)
        if bool(mask.all()) and mask is not drawn:
            scores = model.edge_gradients(batch, lambda out, w=weights: (out * w).sum(-1)).edge
            torch.testing.assert_close(
                scores.double(), his, rtol=1e-4, atol=1e-5 * float(his.abs().max())
            )
    for edge in torch.randperm(len(drawn), generator=torch.Generator().manual_seed(1))[:4].tolist():
        leaf = drawn.clone().requires_grad_(True)
        weights = torch.linspace(-1, 1, 64, dtype=torch.float64)
        (mine,) = torch.autograd.grad((model.run(batch, leaf, reference) * weights).sum(), leaf)
        ends = []
        for step in (1e-3, -1e-3):  # the models' norms compute in float32
            moved = drawn.clone()
            moved[edge] += step
            ends.append(float((model.run(batch, moved, reference) * weights).sum()))
        slope = (ends[0] - ends[1]) / 2e-3
        assert abs(slope - float(mine[edge])) < 2e-3 * float(mine.abs().max())


def test_experts_stand_beside_heads_and_can_be_pasted():
    module = built("mixtral")
    model = gp.wrap(module, experts=True)
    family = gp.describe(model)
    assert "experts=True" in str(family)
    again = gp.wrap(module, family=family)
    assert again.graph.fingerprint == model.graph.fingerprint
    edges = {*model.graph.edge_names}
    assert {"a0.h1->m0.e2", "a0.h1->m0.router", "m0.e2->a1.h0<q>"} <= edges


def test_experts_that_are_none_or_stand_elsewhere_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense, normed = (causal_models.build(kind) for kind in ("starcoder2", "flex_olmo"))
    with pytest.raises(UnsupportedModelError, match="no layer has a mixture of experts"):
        gp.wrap(dense, experts=True)
    with pytest.raises(UnsupportedModelError, match="layer 0 runs its experts in front of a norm"):
        gp.wrap(normed, experts=True)
