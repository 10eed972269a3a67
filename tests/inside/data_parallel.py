"""One of two processes: a step with a shared batch, whole runs, and models with sharded weights.

Arguments: a folder, and families whose models are sharded.
"""

import sys

import torch
from safetensors.torch import save_file
from support.parallel_run import fits
from support.sharded import sharded_results
from support.tiny import random_pair, tiny

import graphprune as gp
from graphprune.search.distributed import Workers


def gradient(examples, workers: Workers) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the mean squared logits in the gates, and the mean itself."""
    module = tiny("llama")
    model = gp.wrap(module)
    clean, corrupt = random_pair(module, batch=5)
    mine = workers.share(examples)
    noise = torch.rand(model.graph.num_edges, generator=torch.Generator().manual_seed(3))
    gates = (noise * 0.8 + 0.1).requires_grad_(True)
    value = torch.zeros((), dtype=torch.float64)
    gates.grad = torch.full_like(gates, float("nan")) if not mine else torch.zeros_like(gates)
    if mine:
        batch = gp.Batch({"input_ids": clean[mine]}, {"input_ids": corrupt[mine]}, len(mine))
        loss = model.run(batch, gates).square().sum(-1).mean()
        loss.backward()
        value = loss.detach().double()
    workers.mean_(gates.grad, len(mine))
    workers.mean_(value, len(mine))
    return gates.grad, value


if __name__ == "__main__":
    folder, *families = sys.argv[1:]
    torch.set_num_threads(1)
    workers = Workers.current()
    assert workers.world == 2
    found = {}
    for examples in ([0, 1, 2, 3, 4], [0, 1], [3]):
        grad, value = gradient(examples, workers)
        found |= {f"grad{examples}": grad, f"value{examples}": value}
    workers.barrier()
    save_file(found, f"{folder}/step{workers.rank}.safetensors")
    save_file(fits(folder), f"{folder}/fits{workers.rank}.safetensors")
    for family in families:
        save_file(sharded_results(family), f"{folder}/{family}{workers.rank}.safetensors")
