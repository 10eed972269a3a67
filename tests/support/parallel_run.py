"""Whole mask optimisations, whose batches are shared where several processes run them."""

import torch

import graphprune as gp
from support.tiny import random_pair, tiny


def fits(folder=None) -> dict[str, torch.Tensor]:
    """Histories, rankings and masks of short runs, soft, sampled and drawn for each example."""
    module = tiny("llama")
    clean, corrupt = random_pair(module, batch=7)
    task = gp.Task.from_tensors(clean, corrupt, answer=[1] * 7, distractor=[2] * 7)
    common = {"size": 20, "steps": 5, "batch_size": 3, "checkpoint_every": 3}
    methods = {
        "default": gp.EdgePruning(refine=1, run_dir=folder and f"{folder}/run", **common),
        "hard": gp.EdgePruning(gates="hard", samples=4, **common),
        "paper": gp.EdgePruning(variant="paper", node_gates=True, **common),
        "ugs": gp.UGS(samples=2, **common),
    }
    found = {}
    for name, method in methods.items():
        fit = method.fit(gp.wrap(module), task)
        found[f"{name}.loss"] = torch.tensor([row["loss"] for row in fit.history])
        found[f"{name}.scores"] = fit.scores.values
        found[f"{name}.mask"] = fit.mask.values
        found[f"{name}.final"] = torch.tensor([fit.notes["loss"]])
    return found
