"""A task's batches with their clean and ablated values, kept between passes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from graphprune.core.ablation import AblationLike, resolve_ablation
from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph
from graphprune.core.model import MaskedModel, Reference, require_model
from graphprune.core.task import Task
from graphprune.errors import InputError

_CACHE_BYTES = 2**30


class ReferenceCache:
    """The batches of a task and the reference of each, for those who pass over them often.

    References are kept up to 1 GiB; those beyond are made anew each time.

    Args:
        ablation: of the references; ``None`` takes what ``circuits`` or results were found under,
            else counterfactual.
        batch_size: examples at a time; ``None`` takes the task's.
    """

    def __init__(
        self,
        model: MaskedModel,
        task: Task,
        ablation: AblationLike | None,
        batch_size: int | None = None,
        *circuits: object,
    ) -> None:
        require_model(model)
        self.ablation = resolve_ablation(model, task, ablation, *circuits)
        self._model = model
        self._batches = list(task.batches(batch_size))
        self._references: dict[int, Reference] = {}
        self._space = _CACHE_BYTES

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> tuple[Batch, Reference]:
        batch = self._batches[number]
        if number in self._references:
            return batch, self._references[number]
        reference = self._model.reference(batch, self.ablation)
        if reference.nbytes <= self._space:
            self._space -= reference.nbytes
            self._references[number] = reference
        return batch, reference

    def __iter__(self) -> Iterator[tuple[Batch, Reference]]:
        return (self[number] for number in range(len(self)))


def require_mask_rows(masks: Tensor, graph: ComputationalGraph) -> None:
    """Raises :class:`InputError` unless ``masks`` are ``[K, E]``."""
    if masks.ndim != 2 or masks.shape[1] != graph.num_edges:
        raise InputError(
            f"masks must have the shape [K, {graph.num_edges}], got {list(masks.shape)}"
        )
