"""Layers taken in steps: masked runs against the layers' own modules, edge by edge."""

import pytest
import torch
from test_block_nodes import built, pair

import graphprune as gp
from graphprune.errors import UnsupportedModelError


def bert_steps(layer):
    """What attention and all behind it change of the stream, by the layer's own modules."""
    one, two = layer.attention.output, layer.output

    def attention(x, call):
        return one.dense(layer.attention.self(x, *call[0], **call[1])[0])

    def rest(y, call):
        h = one.LayerNorm(y)
        return two.LayerNorm(two.dense(layer.intermediate(h)) + h) - y

    return layer.attention.self, attention, rest


def rwkv_steps(layer):
    def mixer(x, call):
        h = layer.pre_ln(x) if hasattr(layer, "pre_ln") else x
        return h - x + layer.attention(layer.ln1(h), *call[0], **call[1])[0]

    def mlp(y, call):
        return layer.feed_forward(layer.ln2(y))[0]

    return layer.attention, mixer, mlp


IN_STEPS = {
    "bert": (bert_steps, lambda m: m.bert.encoder.layer, lambda m, x: m.cls(x)),
    "rwkv": (rwkv_steps, lambda m: m.rwkv.blocks, lambda m, x: m.head(m.rwkv.ln_out(x))),
}


@pytest.mark.parametrize("kind", IN_STEPS)
def test_fractional_masks_of_layers_in_steps_equal_their_modules_edge_by_edge(kind):
    module = built(kind)
    split, stack, top = IN_STEPS[kind]
    steps, layers = [split(layer) for layer in stack(module)], stack(module)
    clean, corrupt, batch = pair(module.config.vocab_size)
    calls = [((), {})] * len(layers)
    handles = []
    for i, (mixer, *_) in enumerate(steps):

        def keep(_, args, kwargs, i=i):
            rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            calls[i] = (args if len(rest) < len(kwargs) else args[1:], rest)

        handles.append(mixer.register_forward_pre_hook(keep, with_kwargs=True))
    entries = []
    note = layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: entries.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        for ids in (corrupt, clean):
            module(input_ids=ids)
    for handle in (*handles, note):
        handle.remove()
    model = gp.wrap(module)
    names = [node.name for node in model.graph.nodes]
    branches = [(branch, calls[i]) for i, (_, *both) in enumerate(steps) for branch in both]
    assert len(names) == len(branches) + 2

    @torch.no_grad()
    def sent(entry, read):
        own = [entry]
        for branch, call in branches:
            own.append(branch(read(own), call))
        return own

    other = sent(entries[0], lambda own: sum(own))
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        mask = torch.rand(model.graph.num_edges, generator=generator, dtype=torch.float64)
        ends = model.graph.edge_index.T.tolist()
        values = {(s, t): float(mask[e]) for e, (s, t) in enumerate(ends)}

        def read(own, values=values):
            weights = [values[s, len(own)] for s in range(len(own))]
            return sum(w * x + (1 - w) * y for w, x, y in zip(weights, own, other, strict=False))

        with torch.no_grad():
            want = top(module, read(sent(entries[1], read)))[:, -1]
        got = model.run(batch, mask).double()
        torch.testing.assert_close(got, want.double(), rtol=1e-5, atol=1e-5)


def test_a_description_in_steps_can_be_pasted():
    from graphprune.adapters.lm import Family, LayerSteps

    module = built("bert")
    read = gp.describe(module)
    assert "LayerSteps(node='a', middle='attention.output.LayerNorm', side='input'" in str(read)
    again = eval(str(read), {"Family": Family, "LayerSteps": LayerSteps})
    assert again == read
    assert gp.wrap(module, family=again).graph.fingerprint == gp.wrap(module).graph.fingerprint
    with pytest.raises(UnsupportedModelError, match="norms or scales the stream"):
        gp.wrap(module, nodes="head")
    model = gp.wrap(module)
    with pytest.raises(UnsupportedModelError, match="change of its stream is one \\(a0\\)"):
        model.pruned(gp.EdgeMask.full(model.graph), gp.Ablation("zero"))
