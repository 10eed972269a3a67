"""Fidelity of an explanation, as PyG and GraphFramEx define it, on any masked model.

``fidelity+`` is the share of examples whose answer changes when the circuit is taken out of the
model (high: the circuit is necessary), ``fidelity-`` the share whose answer changes when only the
circuit is left (low: it is sufficient). Their characterisation score is the weighted harmonic mean
of fidelity+ and 1 - fidelity-.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graphprune.core.ablation import AblationLike, resolve_ablation
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.task import Task


@dataclass(frozen=True)
class Fidelity:
    """The two fidelities of a circuit, as shares of examples; see the module.

    Example:
        >>> Fidelity(plus=0.8, minus=0.2).characterization
        0.800
    """

    plus: float
    minus: float

    @property
    def characterization(self) -> float:
        """Harmonic mean of fidelity+ and 1 - fidelity-; 0 where one of them is."""
        rest = 1.0 - self.minus
        return 2 * self.plus * rest / (self.plus + rest) if self.plus * rest else 0.0


@torch.no_grad()
def fidelity(
    model: MaskedModel,
    task: Task,
    mask: EdgeMask,
    *,
    ablation: AblationLike = "zero",
    batch_size: int | None = None,
) -> Fidelity:
    """Fidelity+ and fidelity- of a mask against the full model's own answers.

    Args:
        ablation: what is in place of an edge that is out; ``"delete"`` on graph networks takes it
            out of the graph, as PyG's users do.

    Example:
        >>> fidelity(model, task, mask, ablation="delete")
        Fidelity(plus=0.0, minus=0.0)
    """
    require_model(model)
    require_same_graph(model.graph, mask.graph, "the model and the mask")
    chosen = resolve_ablation(model, task, ablation)
    rows = torch.stack([1.0 - mask.values, mask.values])
    same = torch.zeros(2, dtype=torch.float64)
    for batch in task.batches(batch_size):
        reference = model.reference(batch, chosen)
        outputs = model.run(batch, rows, reference)
        for side in range(2):
            agreed = task.metric.same_as_full(outputs[side], batch, reference.full)
            same[side] += agreed.double().sum().cpu()
    plus, minus = (1.0 - same / len(task)).tolist()
    return Fidelity(plus, minus)
