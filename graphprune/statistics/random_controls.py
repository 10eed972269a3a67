"""Tasks with shuffled labels and models with shuffled weights.

A sound method does no better than chance on them.

Sources: Adebayo et al. 2018 (arXiv 1810.03292), the randomisation tests of data and of parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from graphprune.capabilities import LowPrecision, UserModule, require
from graphprune.core.batch import Batch, Examples
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.util.checks import at_least


@dataclass(frozen=True, eq=False)
class _Relabelled:
    """Examples with other labels: answer and distractor exchanged, or those of another example.

    ``partner`` gives the example whose labels each one gets; without it those in ``swapped`` have
    answer and distractor exchanged.
    """

    base: Examples
    partner: dict[int, int] | None
    swapped: frozenset[int]

    def __len__(self) -> int:
        return len(self.base)

    def lengths(self) -> Sequence[int]:
        return self.base.lengths()

    def batch(self, indices: Sequence[int]) -> Batch:
        batch = self.base.batch(indices)
        if self.partner is not None:
            other = self.base.batch([self.partner[i] for i in indices])
            return replace(batch, answer=other.answer, distractor=other.distractor)
        assert batch.answer is not None
        assert batch.distractor is not None
        width = max(batch.answer.shape[-1], batch.distractor.shape[-1])
        right, wrong = (_widened(x, width) for x in (batch.answer, batch.distractor))
        there = torch.tensor([i in self.swapped for i in indices], device=right.device)
        there = there.view(-1, *[1] * (right.ndim - 1))
        return replace(
            batch,
            answer=torch.where(there, wrong, right),
            distractor=torch.where(there, right, wrong),
        )


def _widened(ids: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(ids, (0, width - ids.shape[-1]), value=-1)


def shuffled_labels(
    task: Task, seed: int = 0, *, how: Literal["auto", "exchange", "permute"] = "auto"
) -> Task:
    """The same prompts with labels that are independent of them.

    Args:
        how: ``"exchange"``: answer and distractor change places on a random half of the examples;
            ``"permute"``: every example gets another's answer and distractor; ``"auto"``: the
            first where there are distractors.

    A label may come out as it was, half of them by an exchange, and by a permutation as often as
    examples share their labels: labels that always differ would tell the right ones, as answers to
    the opposite question.

    Raises:
        InputError: the task has no answers or one example, or its metric reads none.

    Example:
        >>> task = Task.from_tensors(torch.arange(8)[:, None], answer=[1] * 8, distractor=[2] * 8)
        >>> next(shuffled_labels(task, seed=1).batches()).answer[:, 0].tolist()
        [2, 2, 1, 1, 2, 2, 1, 1]
    """
    at_least(seed, 0, "seed")
    probe = next(task.batches(1))
    if probe.answer is None:
        raise InputError(f"the task {task.name!r} has no answers to shuffle")
    if task.metric.needs and "answer" not in task.metric.needs:
        raise InputError(
            f"the metric {task.metric.name} reads no answers, so shuffling them changes nothing; "
            "give the task another metric: task.with_metric('logit_diff')"
        )
    if len(task) < 2:
        raise InputError("shuffling labels needs at least 2 examples, the task has 1")
    if how == "auto":
        how = "permute" if probe.distractor is None else "exchange"
    order = task.example_numbers
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(order))
    if how == "exchange":
        if probe.distractor is None:
            raise InputError(f"the task {task.name!r} has no distractors; take how='permute'")
        half = frozenset(order[i] for i in shuffled[: len(order) // 2].tolist())
        examples = _Relabelled(task.examples, None, half)
    elif how == "permute":
        if probe.answer.ndim == 3:
            raise InputError("answers at several positions cannot be permuted among examples")
        # A cycle through all of them in random order: every label is that of another example.
        after = np.roll(shuffled, -1)
        partner = {
            order[i]: order[j] for i, j in zip(shuffled.tolist(), after.tolist(), strict=True)
        }
        examples = _Relabelled(task.examples, partner, frozenset())
    else:
        raise InputError(f"how is auto, exchange or permute; got {how!r}")
    return replace(task, examples=examples, name=f"{task.name} (shuffled labels)")


@contextmanager
def randomised_weights(model: MaskedModel, seed: int = 0) -> Iterator[MaskedModel]:
    """The model with every weight tensor's entries shuffled; the user's weights come back.

    Each tensor keeps the distribution of its values. The weights themselves are not written to:
    shuffled copies stand in their place, and ``finally`` takes them out again. So a reference made
    before holds again afterwards, and is refused inside. Buffers stay.

    Example:
        >>> import graphprune as gp
        >>> from torch_geometric.nn import GraphConv
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1], [1, 2]]))
        >>> model = gp.wrap(GraphConv(3, 2), data=data)
        >>> before = model.module.lin_rel.weight.clone()
        >>> with randomised_weights(model, seed=1):
        ...     print(bool((model.module.lin_rel.weight == before).all()))
        False
        >>> bool((model.module.lin_rel.weight == before).all())
        True
    """
    at_least(seed, 0, "seed")
    module = require(model, UserModule, "a control by random weights").module
    parameters = list(module.parameters())
    if not parameters:
        raise InputError("the model has no parameters to randomise")
    if any(p.is_meta for p in parameters):
        raise InputError(
            "weights that are offloaded cannot be randomised in place; load them first"
        )
    if isinstance(model, LowPrecision) and model.lowered is not None:
        raise InputError("randomise the original model, not a copy in low precision")
    generator = torch.Generator().manual_seed(seed)
    original = [p.data for p in parameters]
    try:
        for parameter, values in zip(parameters, original, strict=True):
            order = torch.randperm(values.numel(), generator=generator).to(values.device)
            parameter.data = values.flatten()[order].view_as(values)
        yield model
    finally:
        for parameter, values in zip(parameters, original, strict=True):
            parameter.data = values
