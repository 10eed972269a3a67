"""One optimisation step at CodeLlama-13B's shape, or a smaller one: time and memory.

    python tests/benchmarks/step_13b.py                      # 13B, one GPU of 80 GB or more
    python tests/benchmarks/step_13b.py --layers 8 --heads 8 --width 256 --device cpu

Random weights, made on the device layer by layer; bfloat16 weights, float32 gates. A step is a
draw of hard-concrete masks over all edges, forward, backward and Adam; the reference is at hand.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig

import graphprune as gp
from graphprune.adapters.lm.cost.probe import random_batch, step
from graphprune.adapters.lm.describe.shape import random_model, read_shape
from graphprune.methods.costs import RunShape
from graphprune.util.quantities import synchronise


def config(layers: int = 40, heads: int = 40, width: int = 5120, vocab: int = 32016) -> LlamaConfig:
    """CodeLlama-13B, or the same proportions."""
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=13824 * width // 5120,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocab,
        max_position_embeddings=16384,
    )


def optimisation_step(
    model: gp.MaskedModel, batch: gp.Batch, reference: gp.Reference
) -> Callable[[], None]:
    """A step of gates: hard-concrete masks drawn, forward, backward, Adam."""
    edges, place = model.graph.num_edges, reference.full.device
    alpha = torch.full((edges,), 2.0, device=place, requires_grad=True)
    adam = torch.optim.Adam([alpha], lr=0.1)

    def job() -> None:
        noise = torch.rand(edges, device=place).clamp_(1e-6, 1 - 1e-6)
        drawn = (1.2 * torch.sigmoid((noise.logit_() + alpha) / (2 / 3)) - 0.1).clamp(0, 1)
        mask = drawn.detach().requires_grad_(True)
        step(model, batch, mask, reference)
        drawn.backward(mask.grad)
        adam.step()
        adam.zero_grad()

    return job


def measure(
    shape: LlamaConfig, batch: int, tokens: int, device: str, dtype: str, steps: int
) -> dict[str, float]:
    """Seconds of a step (the least of ``steps``), of a reference, and peak memory in GiB."""
    place, kind = torch.device(device), getattr(torch, dtype)
    sizes = read_shape(shape, dtype=kind)
    model = gp.wrap(random_model(shape, place, kind), check=False)
    weights = sum(p.nbytes for p in model.module.parameters())
    wanted = random_batch(sizes, RunShape(batch, tokens, 1, 1, False, None, place, False))
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    start = time.perf_counter()
    reference = model.reference(wanted)
    _ = reference.full, reference.stream
    synchronise(place)
    first = time.perf_counter() - start
    job, taken = optimisation_step(model, wanted, reference), []
    for _ in range(steps + 1):
        synchronise(place)
        start = time.perf_counter()
        job()
        synchronise(place)
        taken.append(time.perf_counter() - start)
    if place.type == "cuda":
        peak = torch.cuda.max_memory_allocated(place)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "edges": model.graph.num_edges,
        "seconds_step": min(taken[1:]),
        "seconds_reference": first,
        "steps_per_second": 1 / min(taken[1:]),
        "weights_gib": weights / 2**30,
        "peak_gib": peak / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--vocab", type=int, default=32016)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=72)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    shape = config(given.layers, given.heads, given.width, given.vocab)
    made = gp.plan(
        shape, batch_size=given.batch_size, tokens=given.tokens, dtype=given.dtype,
        device=given.device,
    )  # fmt: skip
    found = measure(
        shape, given.batch_size, given.tokens, given.device, given.dtype, given.steps
    )  # fmt: skip
    planned = {"seconds_step": made.seconds["step"], "peak_gib": made.peak / 2**30}
    print(json.dumps({"measured": found, "planned": planned}, indent=2))


if __name__ == "__main__":
    main()
