"""Same outputs with and without a cache of references."""

import pytest
import torch
from support.toy import Toy, ToyExamples

import graphprune as gp

pytestmark = pytest.mark.inside


def test_no_cache_gives_the_same(monkeypatch):
    model = Toy()

    def same(outputs, batch, full):
        return ((outputs - full).abs() <= 1.2).all(-1)

    metric = gp.Metric("close", gp.METRICS["logit_diff"].function, needs=("answer",), same=same)
    task = gp.Task(ToyExamples(), metric, name="toy", batch_size=4)
    masks = (torch.rand(40, 9, generator=torch.Generator().manual_seed(1)) < 0.8).float()
    want = gp.same_outputs(model, task, masks)
    monkeypatch.setattr("graphprune.evaluation.reference_cache._CACHE_BYTES", 0)
    assert torch.equal(gp.same_outputs(model, task, masks), want)
