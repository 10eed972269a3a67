"""Attribution and faithfulness curves beside plain Hugging Face passes.

GPT-2 small's shape, random weights, 8 x 16 tokens, float32, one thread, fresh inputs every repeat,
all 32,491 edges. Existing tools need 14-27x (EAP) and 47-100x (EAP-IG, 5 steps) of one plain
forward + backward with frozen weights, and about 1.3 GB over the model.

Figures of 2026-11-23, virtual machine with 2 AMD EPYC cores, torch 2.13.0 (CPU):

- plain forward + backward, frozen weights: 1.09 CPU s, 194 MiB over the model;
- EAP: 1.47x, 281 MiB over the model (target 1.8x, 450 MiB);
- EAP-IG (inputs, 5 steps): 4.52x, 397 MiB over the model (target 6x, 450 MiB);
- the same with the last position's logits alone (2026-11-29, load 8 to 9, medians of five): 0.84 of
  it; EAP 1.8x and EAP-IG 5.2x of that, 1.48x and 4.4x of the pass above;
- ten-size faithfulness curve, one ranking: 9.7 plain forwards with EAP's scores, 6.2 with random
  ones (target 14);
- a graph of 3,877,661 edges: built in 0.07 s, hashed in 0.11 s, 207 MiB (target 5 s, 1 GB).
"""

import time

import pytest
import torch

import graphprune as gp
from graphprune.adapters.lm.describe.layout import EdgeLayout, LayerShape

from .measuring import (
    VOCAB,
    fresh_batch,
    fresh_peak_mb,
    gpt2_small,
    medians,
    objective,
    plain_forward,
    plain_forward_backward,
)

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def case():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    module = gpt2_small()
    yield module, gp.wrap(module)
    torch.set_num_threads(threads)


def input_gates(model, steps=5):
    gates = torch.ones(steps, model.graph.num_nodes)
    gates[:, 0] = torch.arange(steps) / steps
    return gates


def test_attribution_time(case, capsys):
    module, model = case
    gates = input_gates(model)
    seconds = medians(
        {
            "plain forward + backward, frozen weights": plain_forward_backward(module),
            "the same, last position's logits": plain_forward_backward(module, last=True),
            "EAP": lambda: model.edge_gradients(fresh_batch(), objective),
            "EAP-IG (inputs, 5 steps)": lambda: model.edge_gradients(
                fresh_batch(), objective, gates=gates
            ),
        }
    )
    plain, last, eap, eapig = seconds.values()
    with capsys.disabled():
        print()
        for name, value in seconds.items():
            print(f"{name:45s} {value:7.3f} CPU s   {value / plain:6.2f}x {value / last:6.2f}x")
    assert model.graph.num_edges == 32_491
    assert eap <= 1.8 * plain
    assert eapig <= 6.0 * plain


SETUP = """
model = gp.wrap(gpt2_small())
gates = torch.ones(5, model.graph.num_nodes); gates[:, 0] = torch.arange(5) / 5
model.run(fresh_batch(1, 2), torch.ones(model.graph.num_edges))  # libraries loaded, graph built
"""


def test_attribution_memory(capsys):
    found = {
        "EAP": fresh_peak_mb(SETUP, "model.edge_gradients(fresh_batch(), objective)"),
        "EAP-IG (inputs, 5 steps)": fresh_peak_mb(
            SETUP, "model.edge_gradients(fresh_batch(), objective, gates=gates)"
        ),
    }
    plain = fresh_peak_mb(SETUP + "\nplain = plain_forward_backward(model.module)", "plain()")
    with capsys.disabled():
        print(f"\n{'plain forward + backward, frozen weights':45s} {plain:7.0f} MiB over the model")
        for name, value in found.items():
            print(f"{name:45s} {value:7.0f} MiB over the model")
    assert max(found.values()) <= 450


def test_curve_time(case, capsys):
    """Ten sizes, one ranking: clean and ablated pass, then eight or nine circuits."""
    module, model = case
    scores = gp.Random(seed=0).score(model, None)
    ids = {"answer": [5] * 8, "distractor": [6] * 8}

    def curve(scores):
        def run() -> None:
            clean, corrupt = torch.randint(VOCAB, (2, 8, 16))
            task = gp.Task.from_tensors(clean, corrupt, **ids)
            with gp.quiet():
                gp.faithfulness_curve(model, task, scores, rankings=["signed"])

        return run

    batch = gp.Batch(
        {"input_ids": torch.randint(VOCAB, (8, 16))},
        {"input_ids": torch.randint(VOCAB, (8, 16))},
        8,
    )
    attributed = gp.EdgeScores(model.graph, model.edge_gradients(batch, objective).edge)
    seconds = medians(
        {
            "plain forward": plain_forward(module),
            "curve, scores by EAP": curve(attributed),
            "curve, random scores": curve(scores),
        },
        repeats=3,
    )
    plain, attributed_s, random_s = seconds.values()
    with capsys.disabled():
        print()
        for name, value in seconds.items():
            print(f"{name:45s} {value:7.3f} CPU s   {value / plain:6.2f} plain forwards")
    assert attributed_s <= 14 * plain
    assert random_s <= 14 * plain


def test_graph_of_four_million_edges(capsys):
    """40 layers, 40 heads (CodeLlama-13B): built, fingerprinted and pruned without edge objects."""
    setup = "from graphprune.adapters.lm.describe.layout import EdgeLayout, LayerShape"
    memory = fresh_peak_mb(setup, "EdgeLayout((LayerShape(40, 40),) * 40).graph().fingerprint")
    start = time.perf_counter()
    graph = EdgeLayout((LayerShape(40, 40),) * 40).graph()
    built = time.perf_counter() - start
    print(graph.fingerprint)
    hashed = time.perf_counter() - start - built
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    mask = gp.EdgeMask(graph, torch.rand(graph.num_edges, generator=generator) < 0.01)
    pruned = mask.prune_dead_ends()
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(
            f"\n{graph.num_edges:,} edges: built in {built:.2f} s, fingerprint {hashed:.2f} s, "
            f"{memory:.0f} MiB; {mask.num_kept:,} edges pruned to {pruned.num_kept:,} in "
            f"{seconds:.2f} s"
        )
    assert graph.num_edges == 3_877_661
    assert built + hashed < 5
    assert memory < 1000
