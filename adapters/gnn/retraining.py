"""Training a copy of a PyG module on a task, under a mask or with edges dropped at random.

The loss is the cross entropy of the outputs that the task asks for. Cut edges are absent, as under
``ablation="delete"``, which is right for every layer. The user's module stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.task import Task, require_task
from graphprune.errors import InputError, NumericalError, UnsupportedModelError
from graphprune.util.checks import at_least
from graphprune.util.modes import with_gradients
from graphprune.util.progress import track

from .hooks import MessageHooks
from .message_model import MessageModel
from .self_check import Deletion

__all__ = ["Trainer", "require_messages_to_train", "retrained"]


@with_gradients
def retrained(
    model: MaskedModel,
    task: Task,
    mask: EdgeMask | None = None,
    *,
    epochs: int = 200,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    drop: float = 0.0,
    afresh: bool = False,
    seed: int = 0,
) -> MessageModel:
    """A copy of the model whose module learned ``task`` without the edges that ``mask`` cuts.

    Args:
        model: a PyG module that was wrapped; its own weights stay.
        mask: of zeros and ones; ``None``: all edges. Judge the copy under the same one.
        epochs, lr, weight_decay: of Adam, over the task's batches.
        drop: the chance by which each edge that is left is absent in a step: DropEdge (Rong et al.
            2020, arXiv 1907.10903).
        afresh: from fresh weights, of the module's ``reset_parameters``, instead of its own.
        seed: of fresh weights, dropout and dropped edges.

    Raises:
        InputError: a task without answers, a mask between 0 and 1, or a module whose weights cannot
            be made afresh.
        UnsupportedModelError: the model is no PyG module.

    Example:
        >>> from graphprune.adapters import retrained
        >>> small = retrained(model, task, mask, epochs=20)
        >>> gp.evaluate(small, task, mask, ablation="delete")["accuracy"]
        1.0
    """
    inside = require_messages_to_train(model, "retrained")
    require_task(task)
    if not 0.0 <= drop < 1.0:
        raise InputError(f"drop is the chance of an edge to be absent, in [0, 1), got {drop!r}")
    kept = torch.ones(model.graph.num_edges, dtype=torch.bool)
    if mask is not None:
        require_same_graph(model.graph, mask.graph, "the model and the mask")
        if not mask.is_binary:
            raise InputError("a mask to train under keeps an edge or cuts it, got values between")
        kept = mask.kept
    with seeded(inside.module, seed):
        trainer = Trainer(inside)
        if afresh:
            trainer.reset()
        generator = torch.Generator().manual_seed(seed)

        def drawn() -> Tensor:
            return kept & (torch.rand(len(kept), generator=generator) >= drop) if drop else kept

        trainer.fit(task, drawn, at_least(epochs, 1, "epochs"), lr, weight_decay)
    return trainer.model


@contextmanager
def seeded(module: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers of ``seed`` where the module computes; generators are as before afterwards."""
    device = next(module.parameters(), torch.zeros(())).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def require_messages_to_train(model: MaskedModel, who: str) -> MessageModel:
    """The model, where it is a PyG module whose copy can be trained."""
    require_model(model)
    if not isinstance(model, MessageModel):
        raise UnsupportedModelError(
            f"{who} trains a copy of a PyG module, gp.wrap(module, data=data), and this is a "
            f"{type(model).__name__}; an ARGNN is trained by graphprune.adapters.gnn.train_bptt"
        )
    return model


class Trainer:
    """Trains a copy of a model's module; see the module's text.

    ``model`` is the copy, wrapped; ``module`` its module, in evaluation mode but for training.
    """

    def __init__(self, model: MessageModel) -> None:
        self.module = copy.deepcopy(model.module).eval()
        # What was proven of the module when it was wrapped holds for a copy with other weights.
        self.model = copy.copy(model)
        checked = model.checked
        self.checked = replace(checked, call=replace(checked.call, module=self.module))
        self.model._module, self.model.checked = self.module, self.checked
        self.model._deletion = Deletion(self.checked)

    def reset(self) -> None:
        """Fresh weights, by ``reset_parameters`` of the module and its parts."""
        resets: dict[str, Callable[[], object]] = {}
        for path, part in self.module.named_modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                resets[path] = reset
        for name, _ in self.module.named_parameters():
            above = name.split(".")[:-1]
            owners = {".".join(above[:k]) for k in range(len(above) + 1)}
            if not owners & resets.keys():
                raise InputError(
                    f"fresh weights come from reset_parameters, and nothing that holds {name} has "
                    "it: define it in your module, or keep the weights as they are"
                )
        for reset in resets.values():
            reset()

    def fit(
        self,
        task: Task,
        drawn: Callable[[], Tensor],
        epochs: int,
        lr: float,
        weight_decay: float,
        mask: nn.Parameter | None = None,
        price: float = 0.0,
    ) -> list[float]:
        """Mean loss of each epoch.

        Args:
            drawn: gives ``[E]`` bool for each step: the edges that are there.
            mask: ``[E]``, learned beside the weights; it multiplies messages.
            price: of ``mask``'s sum of sizes, over the number of edges.
        """
        self.module.requires_grad_(True)
        groups = [{"params": list(self.module.parameters()), "weight_decay": weight_decay}]
        if mask is not None:
            groups.append({"params": [mask], "weight_decay": 0.0})
        optimiser = torch.optim.Adam(groups, lr=lr)
        history: list[float] = []
        self.module.train()
        try:
            for _ in track(range(epochs), "training", epochs):
                total = 0.0
                for batch in task.batches():
                    loss = self._loss(batch, drawn(), mask)
                    if not bool(torch.isfinite(loss)):
                        raise NumericalError(f"the loss of epoch {len(history)} is {float(loss)}")
                    total += float(loss.detach()) * batch.size
                    if mask is not None:
                        loss = loss + price * mask.abs().mean()
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                history.append(total / len(task))
        finally:
            self.module.eval()
        return history

    def _loss(self, batch: Batch, kept: Tensor, mask: Tensor | None) -> Tensor:
        graph = self.model.graph  # one value for each edge; messages of an edge share it
        kept, mask = graph.per_message(kept), None if mask is None else graph.per_message(mask)
        if batch.answer is None:
            raise InputError(
                "training needs the class of each example (answers), and this task has none"
            )
        source = self.checked.call.data
        features = source.features(batch.clean, batch.size)
        count = features.num_patterns
        numbers = torch.arange(count)
        there = kept.repeat(count).to(source.device)
        copies = source.make_copies(features.of(numbers), count, there)
        hooks = None if mask is None else MessageHooks(copies.edges, mask.repeat(count))
        out = self.checked.outputs(copies, hooks)
        answers = self.checked.read(out, batch, torch.arange(batch.size) % count)
        target = batch.answer[:, 0].to(answers.device)
        if answers.ndim == 3:  # several places each, of one class
            target = target[:, None].expand(answers.shape[:2])
        return nn.functional.cross_entropy(answers.flatten(0, -2), target.flatten())
