"""Results of the engine on a model, and on one that FSDP2 shards over processes."""

import torch

import graphprune as gp
from support.tiny import random_pair, tiny


def results(module) -> dict[str, torch.Tensor]:
    """Outputs, mask gradients, attributions and the weights' hash, by name."""
    model = gp.wrap(module)
    clean, corrupt = random_pair(module)
    batch = gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(model.graph.num_edges, generator=generator).requires_grad_(True)
    reference = model.reference(batch)
    out = model.run(batch, mask, reference)
    out.square().mean().backward()
    gates = torch.rand(3, model.graph.num_nodes, generator=generator)
    sparse = (mask.detach() > 0.7).float()

    def objective(outputs):
        return outputs[:, 1] - outputs[:, 2]

    digest = model.provenance()["weights"]
    means = model.mean_ablation([batch])
    return {
        "full": reference.full,
        "ablated": reference.ablated,
        "out": out.detach(),
        "grad": mask.grad,
        "sparse": model.run(batch, sparse, reference).detach(),
        "mean": model.run(batch, sparse, model.reference(batch, means)).detach(),
        "eap": model.edge_gradients(batch, objective).edge,
        "gated": model.edge_gradients(batch, objective, gates=gates).edge,
        "relp": model.relevance_gradients(batch, objective).edge,
        "digest": torch.tensor(list(bytes.fromhex(digest))),
    }


def sharded_results(family: str) -> dict[str, torch.Tensor]:
    """The results of a model of four layers, each layer sharded over the running processes."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    module = tiny(family, num_hidden_layers=4).requires_grad_(True)
    base = module.transformer if family == "gpt2" else module.model
    for layer in base.h if family == "gpt2" else base.layers:
        fully_shard(layer)
    fully_shard(module)
    found = results(module)
    assert all(isinstance(p, DTensor) and p.requires_grad for p in module.parameters())
    return found
