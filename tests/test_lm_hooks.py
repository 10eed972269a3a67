"""What users put on a wrapped model's modules: refused by name, or honoured as plain HF does."""

import copy
import functools
import itertools

import pytest
import torch
from support.hooked import hooked
from support.marks import quick
from support.tiny import random_pair, tiny
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import graphprune as gp

FAMILIES = ["llama", "gpt2"]


def system(family):
    module = tiny(family)
    model = gp.wrap(module)
    clean, corrupt = random_pair(module, length=5)
    return module, model, gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))


def plain(module, batch):
    with torch.no_grad():
        return module(**batch.clean).logits[:, -1]


def doubled(_, args, out):
    return (2 * out[0], *out[1:]) if isinstance(out, tuple) else 2 * out


def halved(_, args):
    return (args[0] / 2, *args[1:]) if args and args[0].is_floating_point() else None


HOOKS = {
    "forward hook": lambda m: m.register_forward_hook(doubled),
    "forward hook with kwargs": lambda m: m.register_forward_hook(
        lambda m, args, kwargs, out: doubled(m, args, out), with_kwargs=True
    ),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(halved),
    "backward hook": lambda m: m.register_full_backward_hook(
        lambda m, into, out: tuple(None if g is None else 2 * g for g in into)
    ),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(
        lambda m, out: tuple(None if g is None else 2 * g for g in out)
    ),
}


ANY = [*itertools.product(FAMILIES, HOOKS)]
FEW = [(f, kind) for f, kind in ANY if f == "llama" or (f, kind) == ("gpt2", "forward hook")]


@pytest.mark.parametrize(("family", "kind"), quick(ANY, FEW))
def test_every_hook_on_every_module_is_refused_by_its_name(family, kind):
    """Every module outside the layers and of layer 1, at every kind of call; gone, all is well."""
    module, model, batch = system(family)
    mask = torch.ones(model.graph.num_edges)
    reference = model.reference(batch)
    compiled = model.compiled(batch, gp.EdgeMask.full(model.graph), reference)
    before = model.run(batch, mask, reference)
    layers = {"llama": "model.layers.", "gpt2": "transformer.h."}[family]
    names = [n for n, _ in module.named_modules() if not n.startswith(layers + "0")]
    assert len(names) > 15
    said = kind.removesuffix(" with kwargs")
    for name in names:
        handle = HOOKS[kind](module.get_submodule(name))
        try:
            for call in (
                lambda: model.reference(batch),
                lambda: model.run(batch, mask, reference),
                lambda: model.run(batch, mask, reference, sparse=True),
                lambda: model.edge_gradients(batch, lambda out: out[:, 0], reference),
                compiled,
                lambda: model.pruned(gp.EdgeMask.full(model.graph), gp.Ablation("zero")),
                lambda: gp.wrap(module),
            ):
                with pytest.raises(gp.UnsupportedModelError, match=said) as refusal:
                    call()
                assert str(refusal.value).startswith((name or "the model itself") + " has a")
                assert "family" not in str(refusal.value)
        finally:
            handle.remove()
    assert torch.equal(model.run(batch, mask, reference), before)
    assert torch.equal(compiled(), before) or torch.allclose(compiled(), before, atol=1e-5)


def test_a_hook_put_on_between_forward_and_backward_is_refused():
    module, model, batch = system("llama")
    mask = torch.ones(model.graph.num_edges, requires_grad=True)
    out = model.run(batch, mask)
    with Doubling(module.model.norm), pytest.raises(gp.UnsupportedModelError, match=r"model\.norm"):
        out.sum().backward()


class Doubling:
    def __init__(self, module):
        self.module = module

    def __enter__(self):
        self.handle = self.module.register_forward_hook(doubled)

    def __exit__(self, *_):
        self.handle.remove()


def test_hooks_on_every_module_at_once_are_refused():
    _, model, batch = system("gpt2")
    handle = nn.modules.module.register_module_forward_hook(functools.partial(doubled))
    try:
        with pytest.raises(gp.UnsupportedModelError, match="every module has a forward hook"):
            model.reference(batch)
    finally:
        handle.remove()
    model.reference(batch)


def test_what_libraries_put_there_to_look_on_changes_nothing():
    """Hooks of transformers that record outputs, global ones that count FLOPs."""
    module, model, batch = system("llama")
    with torch.no_grad():
        module(**batch.clean, output_hidden_states=True)
    assert hooked(module)
    with FlopCounterMode(display=False):
        found = model.run(batch, torch.ones(model.graph.num_edges))
    torch.testing.assert_close(found, plain(module, batch), rtol=1e-4, atol=1e-4)


class Scaled(nn.Module):
    def forward(self, weight):
        return 1.5 * weight


@pytest.mark.parametrize("family", quick(FAMILIES, ["gpt2", "llama", "gemma2"]))
def test_parametrised_weights_are_refused_afterwards_and_right_when_wrapped_again(family):
    module, model, batch = system(family)
    block = model.arch.blocks[1]
    for part in (block.attention, block.mlp):
        inner = next(m for m in part.modules() if getattr(m, "weight", None) is not None)
        parametrize.register_parametrization(inner, "weight", Scaled())
        with pytest.raises(gp.UnsupportedModelError, match=r"since gp\.wrap, .*is a Parametrized"):
            model.reference(batch)
        again = gp.wrap(module)
        found = again.run(batch, torch.ones(again.graph.num_edges))
        torch.testing.assert_close(found, plain(module, batch), rtol=1e-4, atol=1e-4)


class LowRank(nn.Linear):
    def forward(self, x):
        return super().forward(x) + x.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    "path",
    ["model.embed_tokens", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.o_proj",
     "model.layers.1.mlp.up_proj", "model.layers.1.mlp", "model.norm", "lm_head"],
)  # fmt: skip
def test_a_replaced_submodule_is_refused(path):
    module, model, batch = system("llama")
    old = module.get_submodule(path)
    new = nn.Sequential(old)
    module.set_submodule(path, new)
    name = path.replace(".", r"\.")
    with pytest.raises(gp.UnsupportedModelError, match=f"since gp.wrap, {name} was replaced"):
        model.reference(batch)
    module.set_submodule(path, old)
    found = model.run(batch, torch.ones(model.graph.num_edges))
    torch.testing.assert_close(found, plain(module, batch), rtol=1e-4, atol=1e-4)


def test_a_replaced_forward_class_or_number_is_refused(monkeypatch):
    module, model, batch = system("llama")
    attention = module.model.layers[1].self_attn
    with monkeypatch.context() as patch:
        inner = attention.forward
        patch.setattr(attention, "forward", lambda *a, **k: inner(*a, **k), raising=False)
        with pytest.raises(gp.UnsupportedModelError, match=r"layers\.1\.self_attn had its forward"):
            model.reference(batch)
    with monkeypatch.context() as patch:
        patch.setattr(attention, "scaling", 2.0)
        with pytest.raises(gp.UnsupportedModelError, match=r"self_attn had scaling=0\.5 and has"):
            model.reference(batch)
    with monkeypatch.context() as patch:
        patch.setattr(module.model.norm, "variance_epsilon", 1.0)
        with pytest.raises(gp.UnsupportedModelError, match=r"norm had variance_epsilon"):
            model.reference(batch)
    with monkeypatch.context() as patch:
        patch.setattr(type(attention), "forward", lambda *args, **kwargs: None)
        with pytest.raises(gp.UnsupportedModelError, match="LlamaAttention"):
            model.reference(batch)
    vars(attention).pop("forward", None)
    model.reference(batch)


def test_a_deep_copy_looks_at_its_own_modules():
    _, model, batch = system("llama")
    mask = torch.ones(model.graph.num_edges)
    other = copy.deepcopy(model)
    attention = other.module.model.layers[1].self_attn
    attention.scaling, was = 5.0, attention.scaling
    with pytest.raises(gp.GraphPruneError, match=r"layers\.1\.self_attn had scaling="):
        other.run(batch, mask)
    attention.scaling = was
    inner = attention.q_proj.forward
    attention.q_proj.forward = lambda x: 2 * inner(x)
    with pytest.raises(gp.GraphPruneError, match=r"self_attn\.q_proj had its forward replaced"):
        other.run(batch, mask)
    del attention.q_proj.forward
    assert torch.equal(other.run(batch, mask), model.run(batch, mask))


def test_a_forward_replaced_before_wrapping_is_blamed():
    module = tiny("llama")
    layer = module.model.layers[0]
    inner = layer.forward
    layer.forward = lambda *args, **kwargs: 2 * inner(*args, **kwargs)
    with pytest.raises(gp.UnsupportedModelError, match=r"forward of model\.layers\.0 was replaced"):
        gp.wrap(module)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_changed_in_place_are_honoured(family):
    """By new references; old ones, and compiled circuits, hold what the old weights gave."""
    module, model, batch = system(family)
    mask = gp.EdgeMask.full(model.graph)
    reference = model.reference(batch)
    compiled = model.compiled(batch, mask, reference)
    before = plain(module, batch)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.2)
    now = plain(module, batch)
    assert (now - before).abs().max() > 0.1
    torch.testing.assert_close(model.reference(batch).full, now, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.run(batch, mask), now, rtol=1e-4, atol=1e-4)
    for call in (lambda: model.run(batch, mask, reference), compiled, lambda: reference.full):
        with pytest.raises(gp.InputError, match="weights were changed after this reference"):
            call()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_hooks_that_set_weights_are_run():
    """Old-style weight norm: its weight is made anew before every call, of the module's or ours."""
    module = tiny("llama")
    projection = nn.utils.weight_norm(module.model.layers[1].self_attn.q_proj)
    model = gp.wrap(module)
    _, _, batch = system("llama")
    with torch.no_grad():
        projection.weight_g.mul_(2.0)
    found = model.run(batch, torch.ones(model.graph.num_edges))
    torch.testing.assert_close(found, plain(module, batch), rtol=1e-4, atol=1e-4)
