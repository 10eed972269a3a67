"""What a circuit that runs alone computes: counted where it happens."""

import pytest
import torch
from support.tiny import random_pair, tiny

import graphprune as gp
from graphprune import Batch
from graphprune.adapters.lm.passes.delta_buffer import HeadCores
from graphprune.adapters.lm.passes.masked import MaskedPass

pytestmark = pytest.mark.inside


def system(family, same=1):
    model = gp.wrap(tiny(family, dtype=torch.float64))
    clean, corrupt = random_pair(model.module)
    corrupt[:, :same] = clean[:, :same]
    return model, Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))


def test_only_the_circuits_heads_are_projected(monkeypatch):
    """Counted where it happens: rows projected and attention heads run."""
    model, batch = system("llama", same=0)
    names = ["input->a1.h2<q>", "input->a0.h1<v>", "a0.h1->a1.h2<q>", "a1.h2->logits"]
    names = [n for n in names if n in model.graph.edge_number]
    mask = torch.zeros(model.graph.num_edges)
    mask[[model.graph.edge_number[n] for n in names]] = 1
    reference = model.reference(batch)
    model.run(batch, mask, reference, sparse=True)  # each layer's heads have been tried
    heads, mlps = [], []
    run = HeadCores._few

    def few(self, qkv, some, call):
        heads.append(some.tolist())
        return run(self, qkv, some, call)

    monkeypatch.setattr(HeadCores, "_few", few)
    monkeypatch.setattr(MaskedPass, "feed", lambda self, block, *_: mlps.append(block.index))
    model.run(batch, mask, reference, sparse=True)
    assert heads == [[2]]  # a0.kv is not read by h2's q; a0.h1 has no kept input of its own
    assert mlps == []
