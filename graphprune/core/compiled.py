"""A circuit made ready to run: constants computed once, only its own nodes computed each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graphprune.capabilities import CompiledCircuits
from graphprune.core.ablation import AblationLike, resolve_ablation
from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.core.model import MaskedModel, Reference, require_model
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.util.numbers import positions_in


class CompiledCircuit:
    """Runs a circuit on a task's examples, or on fresh inputs.

    Made by :meth:`graphprune.Circuit.compile`. The task's clean and ablated values are kept, so
    memory grows with the number of its examples.
    """

    def __init__(
        self,
        model: MaskedModel,
        task: Task,
        mask: EdgeMask,
        *,
        ablation: AblationLike | None = None,
        batch_size: int | None = None,
    ) -> None:
        require_model(model)
        require_same_graph(model.graph, mask.graph, "the model and the circuit")
        self.model, self.mask = model, mask
        self._ablation = resolve_ablation(model, task, ablation)
        self._runs: list[Callable[[], Tensor]] = []
        batched: list[int] = []
        for batch in task.batches(batch_size):
            reference = model.reference(batch, self._ablation)
            self._runs.append(_compiled(model, batch, mask, reference))
            batched += batch.indices
        self._order = positions_in(batched, task.example_numbers)

    @torch.no_grad()
    def __call__(self, clean: Any = None, corrupt: Any = None) -> Tensor:
        """Outputs at the answer positions.

        Without arguments those of the task's examples in their order, ``[n, V]`` (``[n, P, V]``
        for several positions). ``clean`` and, for counterfactual ablation, ``corrupt`` are fresh
        inputs of the adapter's kind (token ids ``[B, T]``, or a mapping with ``input_ids`` and
        ``attention_mask``), answered at the last position that is no padding; their ablated pass
        is part of the call.
        """
        if clean is None:
            if corrupt is not None:
                raise InputError("corrupted inputs came without clean ones")
            parts = [run() for run in self._runs]
            if len({part.shape[1:] for part in parts}) > 1:
                raise InputError(
                    "the task's batches have different numbers of answer positions; compile it "
                    "with batch_size=len(task)"
                )
            outputs = torch.cat(parts)
            return outputs if self._order is None else outputs[self._order.to(outputs.device)]
        batch = Batch(_inputs(clean), None if corrupt is None else _inputs(corrupt), _size(clean))
        reference = self.model.reference(batch, self._ablation)
        return _compiled(self.model, batch, self.mask, reference)()

    def __repr__(self) -> str:
        return f"CompiledCircuit({self.mask!r})"


def _compiled(
    model: MaskedModel, batch: Batch, mask: EdgeMask, reference: Reference
) -> Callable[[], Tensor]:
    """The model's own run of the circuit's nodes alone, else the masked run."""
    if isinstance(model, CompiledCircuits):
        return model.compiled(batch, mask, reference)
    return lambda: model.run(batch, mask, reference)


def _inputs(given: Any) -> Any:
    """Bare token ids as a language model's inputs; anything else as it is."""
    if isinstance(given, Tensor) and not given.is_floating_point():
        return {"input_ids": given}
    return given


def _size(given: Any) -> int:
    inner = next(iter(given.values())) if isinstance(given, Mapping) else given
    return len(inner)
