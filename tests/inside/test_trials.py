"""Quick trials of a descent on a language model are masked runs."""

import itertools

import pytest
import torch
from support.tiny import FAMILIES, Float64
from support.tiny import language_system as system

import graphprune as gp
from graphprune.adapters.lm.passes.incremental import SuffixTrials
from graphprune.core.trials import FullTrials
from graphprune.search.order import readers

pytestmark = pytest.mark.inside


def trials_of(model, task, order=None):
    (batch,) = task.batches()
    reference = model.reference(batch)
    kept = torch.ones(model.graph.num_edges, dtype=torch.bool)
    order = gp.ACDC().edge_order(model.graph) if order is None else order
    return batch, reference, model.trials(batch, kept, reference, order)


def test_trials_are_quick_only_where_the_order_allows():
    model, task = system("gpt2")
    order = gp.ACDC().edge_order(model.graph)
    assert isinstance(trials_of(model, task)[2], SuffixTrials)
    assert isinstance(trials_of(model, task, order.flip(0))[2], FullTrials)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_of_trials_are_masked_runs(family):
    """Rows, cuts and drops at every reader, to 1e-9: nothing drifts over a whole descent."""
    with Float64():
        model, task = system(family, torch.float64)
        batch, reference, trials = trials_of(model, task)
        order = gp.ACDC().edge_order(model.graph)
        turn = readers(model.graph)[order]
        generator = torch.Generator().manual_seed(0)
        kept = torch.ones(model.graph.num_edges, dtype=torch.bool)
        starts = [0, *(torch.nonzero(turn[1:] != turn[:-1])[:, 0] + 1).tolist(), len(order)]
        for start, stop in itertools.pairwise(starts):
            edges = order[start:stop]
            drawn = torch.rand(len(edges), len(edges), generator=generator) < 0.6
            cuts = drawn.tril(-1) | torch.eye(len(edges), dtype=torch.bool)
            with torch.no_grad():
                rows = trials.without(edges, cuts)
                masks = kept.repeat(len(edges), 1)
                for j in range(len(edges)):
                    masks[j, edges[cuts[j]]] = False
                want = model.run(batch, masks.double(), reference)
            torch.testing.assert_close(rows, want, rtol=0, atol=1e-9)
            row = int(torch.randint(len(edges), (1,), generator=generator))
            trials.cut(row)
            kept = masks[row]
            assert torch.equal(trials.kept, kept)
            torch.testing.assert_close(trials.outputs(), want[row], rtol=0, atol=1e-9)
