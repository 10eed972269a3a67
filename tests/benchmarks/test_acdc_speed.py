"""ACDC on GPT-2 small's shape: the whole quick descent beside the plain loop of whole runs.

Random weights, 8 x 16 tokens, KL, one thread. The plain loop makes one whole pass an edge, with
every node computed and logits at all positions; the second one has the engine's own savings (logits
at answer positions, nodes off the circuit left out). Both are timed on edges drawn in equal numbers
from each layer, in the state in which the descent met them, and multiplied by the number of edges
that had to be tried: edges into dead nodes cost no loop anything.

2-core AMD EPYC virtual machine, 507 edges a loop, other work beside it; CPU seconds are counted.
2026-11-28: tau 3e-4 keeps 129 edges (2,500 tried, 29,991 dropped); the descent takes 56 s, the
plain loop 1,746 s (31.2x), the second one 815 s (14.6x). Tau 3e-5 keeps 948 edges (all 32,491
tried, 9 rechecked); the descent takes 1,913 s, the plain loop 21,147 s (11.1x), the second one
14,145 s (7.4x): with 948 edges most nodes downstream of a cut are reached, and their MLPs' products
are over half of a try (61 % of a call profiled at layer 6). Before edges that stay were guessed and
before activations and the output map were computed a piece at a time, the descents took 80 and
2,412 s (19.5x and 9.2x). The plain loop's activations are computed a piece at a time too, its
output map at once.
"""

import os
import time

import pytest
import torch

import graphprune as gp
from graphprune.adapters.lm.describe.layout import dense_plan
from graphprune.adapters.lm.passes.delta_buffer import AblatedRun
from graphprune.adapters.lm.passes.masked import MaskedPass

from .measuring import BATCH, TOKENS, fresh_batch, gpt2_small

SAMPLE = int(os.environ.get("GRAPHPRUNE_ACDC_EDGES", "500"))


@pytest.mark.benchmark
@pytest.mark.timeout(0)
@pytest.mark.parametrize("tau", [3e-4, 3e-5])
def test_against_the_plain_loop(tau):
    torch.set_num_threads(1)
    model = gp.wrap(gpt2_small())
    batch = fresh_batch()
    ids = [batch.clean["input_ids"], batch.corrupt["input_ids"]]
    task = gp.Task.from_tensors(*ids, answer=[1] * BATCH, metric="kl")
    task = gp.Task(task.examples, "kl", batch_size=BATCH)
    start = time.process_time()
    found = gp.ACDC(tau=tau).fit(model, task)
    quick = time.process_time() - start
    tried = int((~found.values["effects"].isnan()).sum())
    per_edge = {"plain loop": [], "with the engine's savings": []}
    order = gp.ACDC().edge_order(model.graph)
    (one,) = task.batches()
    reference = model.reference(one)
    assert reference.full is not None
    every = torch.arange(TOKENS).repeat(BATCH, 1)
    wide = gp.Batch(one.clean, one.corrupt, BATCH, positions=every)
    whole = model.reference(wide)
    assert whole.full is not None
    for at in _stratified(model.graph, order, found, SAMPLE):
        mask = torch.ones(model.graph.num_edges)
        mask[order[:at]] = found.mask.values[order[:at]]
        mask[order[at]] = 0
        with torch.no_grad():
            start = time.process_time()
            base = AblatedRun(whole, model._cores)
            MaskedPass(base, dense_plan(model.layout), mask[None]).forward()
            middle = time.process_time()
            model.run(one, mask, reference)
        per_edge["plain loop"].append(middle - start)
        per_edge["with the engine's savings"].append(time.process_time() - middle)
    print(
        f"\ntau {tau:g}: {found.mask.num_kept} edges kept, {tried} tried, "
        f"{found.notes['dropped']} dropped, {found.notes['rechecks']} rechecked; "
        f"whole run {quick:.0f} s"
    )
    ratios = {}
    for name, seconds in per_edge.items():
        loop = sum(seconds) / len(seconds) * tried
        ratios[name] = loop / quick
        print(f"{name}: {loop:.0f} s from {len(seconds)} edges, ratio {ratios[name]:.1f}")
    assert ratios["plain loop"] >= 10


def _stratified(graph, order, found, count):
    """Places in the order of edges that were tried, as many from each layer as there are."""
    tried = torch.nonzero(~found.values["effects"][order].isnan())[:, 0]
    layers = torch.tensor([99 if n.layer is None else n.layer for n in graph.nodes])
    of = layers[graph.edge_index[1][order[tried]]]
    generator = torch.Generator().manual_seed(0)
    chosen = []
    present = of.unique()
    for layer in present:
        mine = tried[of == layer]
        share = torch.randperm(len(mine), generator=generator)[: -(-count // len(present))]
        chosen += mine[share].tolist()
    return sorted(chosen)
