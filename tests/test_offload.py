"""Models whose weights come and go: the same numbers, one layer's weights at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from support.marks import quick
from support.sharded import results
from support.tiny import random_pair, tiny

import graphprune as gp
from graphprune.errors import UnsupportedModelError

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "olmo2"]
LAYERS = {"num_hidden_layers": 4}


def four_layers(family):
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 2}
    return tiny(family, **LAYERS, **(kinds if family == "gemma2" else {}))


def cpu(module, folder):
    return cpu_offload(module, execution_device=torch.device("cpu"))


def disk(module, folder):
    return disk_offload(module, folder / "weights", execution_device=torch.device("cpu"))


def mapped(module, folder):
    """The map `device_map="auto"` makes on one small device: some layers here, some on disk."""
    base = next(name for name, child in module.named_children() if name != "lm_head")
    base = base if base != "embed_out" else "gpt_neox"
    layers = "h" if hasattr(getattr(module, base), "h") else "layers"
    device_map = {name: "cpu" for name, _ in module.named_children() if name != base} | {
        f"{base}.{name}": "cpu" for name, _ in getattr(module, base).named_children()
    }
    del device_map[f"{base}.{layers}"]
    device_map |= {f"{base}.{layers}.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
    return dispatch_model(
        module, device_map, main_device="cpu", offload_dir=str(folder / "mapped"), force_hooks=True
    )


WAYS = list(itertools.product(FAMILIES, (cpu, disk, mapped)))
# Each way on one family, and two other families.
FEW = [("gpt2", cpu), ("gpt2", disk), ("gpt2", mapped), ("llama", mapped), ("gemma2", disk)]


@pytest.mark.parametrize(("family", "way"), quick(WAYS, FEW))
def test_offloaded_weights_give_the_same_numbers_and_leave_again(family, way, tmp_path):
    want = results(four_layers(family))
    away = way(four_layers(family), tmp_path)
    before = {name: p.is_meta for name, p in away.named_parameters()}
    forwards = {name: m.__dict__.get("forward") for name, m in away.named_modules()}
    assert any(before.values())
    found = results(away)
    assert found.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert {name: p.is_meta for name, p in away.named_parameters()} == before
    assert {name: m.__dict__.get("forward") for name, m in away.named_modules()} == forwards


class Watch:
    """How many layers have all of their weights at hand at once, at most."""

    def __init__(self, model) -> None:
        self.layers = [block.layer for block in model.arch.blocks]
        self.most = 0

    def look(self) -> None:
        here = sum(not any(p.is_meta for p in layer.parameters()) for layer in self.layers)
        self.most = max(self.most, here)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_layer_is_present_at_a_time(family, tmp_path, monkeypatch):
    """Looked at whenever an MLP runs, forward and backward."""
    module = disk(tiny(family, **LAYERS), tmp_path)
    kind = next(type(m) for name, m in module.named_modules() if name.endswith((".act", ".act_fn")))
    inner, calls, watches = kind.forward, [], []

    def look(*args):
        for watch in watches:
            watch.look()
            calls.append(1)
        return inner(*args)

    monkeypatch.setattr(kind, "forward", look)
    model = gp.wrap(module)
    watch = Watch(model)
    watches.append(watch)
    clean, corrupt = random_pair(module)
    batch = gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    mask = torch.full((model.graph.num_edges,), 0.5, requires_grad=True)
    model.run(batch, mask).square().sum().backward()
    assert watch.most == 1
    assert len(calls) >= 8


def test_weights_leave_after_an_error(tmp_path, monkeypatch):
    module = disk(tiny("llama", **LAYERS), tmp_path)
    kind = type(module.model.layers[2].mlp.act_fn)
    inner, bad = kind.forward, []

    def burst(self, x):
        if self in bad:
            raise RuntimeError("burst")
        return inner(self, x)

    monkeypatch.setattr(kind, "forward", burst)
    model = gp.wrap(module)
    clean, corrupt = random_pair(module)
    batch = gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))

    bad.append(module.model.layers[2].mlp.act_fn)
    with pytest.raises(RuntimeError, match="burst"):
        model.run(batch, torch.ones(model.graph.num_edges))
    bad.clear()
    assert all(p.is_meta for p in module.parameters())
    whole = gp.wrap(tiny("llama", **LAYERS))
    edges = torch.ones(model.graph.num_edges)
    torch.testing.assert_close(model.run(batch, edges), whole.run(batch, edges))


def test_weights_that_no_hook_brings_are_refused():
    with pytest.raises(UnsupportedModelError, match="no hook of accelerate's brings them"):
        gp.wrap(tiny("llama").to("meta"))
