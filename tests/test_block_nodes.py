"""Mixers that are one node: against tied heads, the modules in a slow loop, and hooked runs."""

import warnings

import pytest
import torch
from support import causal_models
from support.read_models import prove
from support.tiny import random_pair, tiny

import graphprune as gp
from graphprune.errors import InputError, UnsupportedModelError

# type -> the letters of its layers' mixers, where some are not split by head ("h": by head)
KINDS = {
    "deepseek_v3": "aaa",  # latent attention, a mixture of experts
    "minicpm3": "aaa",  # the same, with multipliers of the stream
    "lfm2": "shs",  # short convolutions, attention by head between them
    "jamba": "sss",  # state spaces
    "mamba": "sss",  # the same, without MLPs
    "mamba2": "sss",
    "qwen3_next": "sas",  # linear attention, attention with a gate on its output
    "mimo_v2_flash": "aaa",  # layers of different numbers of key/value heads
    "bert": "aaa",  # in steps: norms behind each sum
    "roberta-prelayernorm": "aaa",  # a norm in front, in the module that adds
    "bart": "aaa",
    "doge": "aaa",  # learned scales of the stream
    "ctrl": "aaa",  # a mixer that is called with its input three times
    "falcon_h1": "sss",  # attention and a state space side by side
    "rwkv": "smsmsm",  # an MLP that mixes tokens
    "longcat_flash": "smsmsm",  # two attentions, two MLPs and experts in one layer
    "nemotron_h": "smam",  # layers that are an MLP alone
    "olmo_hybrid": "shs",  # norms in front in some layers, behind in others
}
# What a layer of a type is made of: a norm and the module behind it, under one of several names.
PARTS = {
    "deepseek_v3": (("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp")),
    "lfm2": (("operator_norm", "conv", "self_attn"), ("ffn_norm", "feed_forward")),
    "jamba": (("input_layernorm", "mamba", "self_attn"), ("pre_ff_layernorm", "feed_forward")),
    "qwen3": (("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp")),
    "mamba": (("norm", "mixer"),),
}


def built(kind, dtype=torch.float64):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are not installed
        return causal_models.build(kind, dtype=dtype)


def pair(vocabulary, length=7, same=0, seed=3):
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = torch.randint(vocabulary, (2, 2, length), generator=generator)
    corrupt[:, :same] = clean[:, :same]
    return clean, corrupt, gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_block_nodes_is_exact(kind):
    module = built(kind)
    model = gp.wrap(module)
    assert "".join(shape.block or "h" for shape in model.layout.shapes) == KINDS[kind]
    gaps = prove(module, gradients=True)
    assert gaps.pop("gradients") < 2e-3
    assert max(gaps.values()) < 1e-5, gaps


# ------------------------------------------------------------------ tied heads


def tied(blocks, heads):
    """For each edge of the graph by head, the edge of the graph by block that it is part of."""
    ends = {}
    for edge, (source, target) in enumerate(blocks.edge_index.T.tolist()):
        ends[blocks.nodes[source].name, blocks.nodes[target].name] = edge
    names = [node.name.split(".")[0] for node in heads.nodes]
    return torch.tensor([ends[names[s], names[t]] for s, t in heads.edge_index.T.tolist()])


# Where the output map has a bias it is a block's message's, and no head's: of these families only
# counterfactual messages, whose bias is the same, can be compared.
@pytest.mark.parametrize(
    ("family", "ablation"),
    [
        ("gpt2", "counterfactual"),
        ("gpt_neox", "counterfactual"),
        ("llama", "counterfactual"),
        ("llama", "zero"),
        ("olmo2", "zero"),
        ("gemma2", "counterfactual"),
    ],
)
@pytest.mark.parametrize("same", [0, 3])
def test_a_block_is_all_heads_of_its_layer_tied(family, ablation, same):
    module = tiny(family).double()
    one, many = gp.wrap(module, nodes="block"), gp.wrap(module, nodes="head")
    assert one.graph.num_edges < many.graph.num_edges
    assert [node.name for node in one.graph.nodes][1:3] == ["a0", "m0"]
    _, _, batch = pair(module.config.vocab_size, same=same)
    part = tied(one.graph, many.graph)
    references = [model.reference(batch, gp.Ablation(ablation)) for model in (one, many)]
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(3, one.graph.num_edges, generator=generator, dtype=torch.float64)
    leaf = mask.clone().requires_grad_(True)
    finer = mask[:, part].clone().requires_grad_(True)
    ours, theirs = one.run(batch, leaf, references[0]), many.run(batch, finer, references[1])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    def loss(outputs):
        return (outputs * torch.linspace(-1, 1, outputs.shape[-1], dtype=outputs.dtype)).sum(-1)

    loss(ours).sum().backward()
    loss(theirs).sum().backward()

    def summed(edges):
        return torch.zeros_like(mask).to(edges).index_add_(-1, part, edges)

    size = float(leaf.grad.abs().max())
    torch.testing.assert_close(leaf.grad / size, summed(finer.grad) / size, rtol=1e-5, atol=1e-5)
    kept = (mask[0] < 0.2).double()
    torch.testing.assert_close(
        one.run(batch, kept, references[0], sparse=True),
        many.run(batch, kept[part], references[1], sparse=False),
        rtol=1e-5,
        atol=1e-5,
    )
    scores = one.edge_gradients(batch, loss, references[0]).edge
    finer_scores = many.edge_gradients(batch, loss, references[1]).edge
    sums = torch.zeros_like(scores).index_add_(0, part, finer_scores)
    torch.testing.assert_close(scores, sums, rtol=1e-4, atol=1e-5 * float(scores.abs().max()))


# ------------------------------------------------------------------ the modules in a slow loop


class SlowLoop:
    """Masked runs by definition: each reader's sum edge by edge, then the user's own modules.

    Nodes are numbered as they come: the embedding, then each layer's mixer and MLP, the output.
    """

    def __init__(self, module, parts):
        self.module, self.base = module, getattr(module, module.base_model_prefix)
        self.branches = []  # the norm in front, and the module
        for layer in self.base.layers:
            for norm, *names in parts:
                name = next(name for name in names if hasattr(layer, name))
                self.branches.append((getattr(layer, norm), getattr(layer, name)))
        self.calls = {}

    def sent(self, ids):
        """Every writer's message of a plain run; keeps what modules are called with besides."""
        messages, handles = [], []

        def enter(_, args, kwargs):
            messages.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

        def keep(module, args, kwargs, out):
            messages.append(out if isinstance(out, torch.Tensor) else out[0])
            rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            self.calls[module] = (args if len(rest) < len(kwargs) else args[1:], rest)

        handles.append(self.base.layers[0].register_forward_pre_hook(enter, with_kwargs=True))
        for _, module in self.branches:
            handles.append(module.register_forward_hook(keep, with_kwargs=True))
        try:
            self.module(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return messages

    @torch.no_grad()
    def logits(self, clean, corrupt, mask):
        """Last logits; ``mask`` gives a number for each (writer, reader)."""
        other, own = self.sent(corrupt), self.sent(clean)[:1]

        def read():
            reader, total = len(own), 0
            for writer, message in enumerate(own):
                m = mask[writer, reader]
                total = total + m * message + (1 - m) * other[writer]
            return total

        for norm, module in self.branches:
            args, kwargs = self.calls[module]
            out = module(norm(read()), *args, **kwargs)
            own.append(out if isinstance(out, torch.Tensor) else out[0])
        names = ("norm", "embedding_norm", "final_layernorm", "norm_f")
        norm = next(getattr(self.base, name) for name in names if hasattr(self.base, name))
        return self.module.lm_head(norm(read()))[:, -1]


@pytest.mark.parametrize("kind", PARTS)
def test_fractional_masks_equal_the_modules_run_edge_by_edge(kind):
    module = built(kind)
    model = gp.wrap(module, nodes="block")
    clean, corrupt, batch = pair(module.config.vocab_size)
    graph = model.graph
    number = {node.name: i for i, node in enumerate(graph.nodes)}
    assert [*number][:: len(number) - 1] == ["input", "logits"]
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        mask = torch.rand(graph.num_edges, generator=generator, dtype=torch.float64)
        values = {(s, t): float(mask[e]) for e, (s, t) in enumerate(graph.edge_index.T.tolist())}
        want = SlowLoop(module, PARTS[kind]).logits(clean, corrupt, values)
        got, full = model.run(batch, mask).double(), model.reference(batch).full.double()
        assert not torch.allclose(want.double(), full, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(got, want.double(), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ what stands on the engine


@pytest.mark.parametrize(
    ("kind", "tau"), [("lfm2", 0.3), ("mamba", 0.3), ("bert", 0.3), ("rwkv", 1e-3)]
)
def test_methods_and_ablations_run_on_block_nodes(kind, tau):
    module = built(kind)
    model = gp.wrap(module)
    clean, corrupt, batch = pair(module.config.vocab_size, same=2)
    task = gp.Task.from_tensors(
        clean, corrupt, answer=torch.tensor([1, 2]), distractor=torch.tensor([3, 4])
    )
    one, other = (
        gp.ACDC(tau=tau, exact=how).prune(model, task) for how in ("speculative", "sequential")
    )
    assert torch.equal(one.values, other.values)
    assert 0 < one.num_kept < model.graph.num_edges
    run = gp.Circuit.from_mask(one, model=model, task=task).compile(model, task)
    torch.testing.assert_close(run(), model.run(next(iter(task.batches())), one))
    ablation = model.learned_ablation(model.mean_ablation([batch]))
    full = torch.ones(model.graph.num_edges)
    for each in (model.mean_ablation([batch]), ablation, gp.Ablation("zero")):
        out = model.run(batch, full, model.reference(batch, each))
        torch.testing.assert_close(out, model.reference(batch).full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lfm2", "mamba", "bert", "rwkv"])
def test_attribution_is_the_mask_gradient_at_the_clean_model(kind):
    module = built(kind)
    model = gp.wrap(module)
    _, _, batch = pair(module.config.vocab_size, same=2)
    reference = model.reference(batch)

    def loss(outputs):
        return (outputs * torch.linspace(-1, 1, outputs.shape[-1]).to(outputs)).sum(-1)

    mask = torch.ones(model.graph.num_edges, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(loss(model.run(batch, mask, reference)).sum(), mask)
    got = model.edge_gradients(batch, loss, reference, neurons=True)
    torch.testing.assert_close(got.edge.double(), want, rtol=1e-4, atol=1e-4)
    sums = {name: float(values.sum()) for name, values in got.neurons.items()}
    for name, total in sums.items():
        own = [model.graph.nodes[s].name == name for s in model.graph.edge_index[0].tolist()]
        assert total == pytest.approx(float(want[own].sum()), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", ["lfm2", "mamba", "bert", "rwkv"])
def test_gradients_of_learned_constants_are_those_of_finite_differences(kind):
    module = built(kind)
    model = gp.wrap(module)
    _, _, batch = pair(module.config.vocab_size)
    ablation = model.learned_ablation(model.mean_ablation([batch]))
    (constants,) = ablation.parameters
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(model.graph.num_edges, generator=generator, dtype=torch.float64)

    def loss():
        out = model.run(batch, mask, model.reference(batch, ablation))
        return (out * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)).sum()

    (gradient,) = torch.autograd.grad(loss(), constants)
    step = 1e-3  # the model's norms round to float32
    for writer in range(model.layout.writers):
        direction = torch.randn(model.arch.width, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                constants[writer] += sign * step * direction
                ends.append(float(loss()))
                constants[writer] -= sign * step * direction
        slope = (ends[0] - ends[1]) / (2 * step)
        want = float(gradient[writer] @ direction)
        assert slope == pytest.approx(want, rel=2e-3, abs=2e-3)


def test_what_is_not_built_for_blocks_names_the_layer():
    module = tiny("llama")
    model = gp.wrap(module, nodes="block")
    clean, corrupt = random_pair(module)
    batch = gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    mask = gp.EdgeMask.full(model.graph)
    with pytest.raises(UnsupportedModelError, match=r"layer 0's self_attn is one \(a0\)"):
        model.pruned(mask, gp.Ablation("zero"))
    with pytest.raises(UnsupportedModelError, match="low precision is not built"):
        model.at_precision(gp.PrecisionPolicy({"mlp": "int8"}, emulate=True))
    with pytest.raises(UnsupportedModelError, match="relevance"):
        model.relevance_gradients(batch, lambda out: out.sum(-1))
    with pytest.raises(InputError, match="'head', 'block' or 'auto', got 'layer'"):
        gp.wrap(module, nodes="layer")
    with pytest.raises(UnsupportedModelError, match="self_attn"):
        gp.wrap(built("deepseek_v3"), nodes="head")
    family = gp.describe(gp.wrap(built("lfm2")))
    with pytest.raises(UnsupportedModelError, match="conv cannot be split by head"):
        gp.wrap(built("lfm2"), nodes="head", family=family)


def test_a_description_with_blocks_can_be_pasted():
    module = built("qwen3_next")
    read = gp.describe(module)
    assert "blocks=(('s', 'linear_attn'), ('a', 'self_attn'))" in str(read)
    from graphprune.adapters.lm import Family

    again = eval(str(read), {"Family": Family})
    assert again == read
    assert gp.wrap(module, family=again).graph.fingerprint == gp.wrap(module).graph.fingerprint


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cpmant", r"they hand on \[1, 38, 32\] for 1 prompt of 6 tokens"),
        (
            "hy_v4",
            "layers.2: it reads prev_topk_indices, whole numbers that the layer",
        ),
        ("inkling2_text", "it reads states of several layers before it, not of the last"),
        ("reformer", "layer 0: ReformerLayer gives no gradient to what it reads"),
        ("hrm_text", "the layers: there is no list of modules of which each is called with"),
    ],
)
def test_what_is_no_chain_of_streams_is_refused_with_the_reason(kind, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        gp.wrap(built(kind, torch.float32))
