"""Backpropagation through time: all steps of a run are unrolled, fresh updates for each batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphprune.errors import NumericalError
from graphprune.util.modes import with_gradients
from graphprune.util.progress import track

from .argnn import ARGNN

__all__ = ["accuracy", "train_bptt"]


@with_gradients
def train_bptt(
    network: ARGNN,
    x: Tensor,
    labels: Tensor,
    *,
    epochs: int = 30,
    lr: float = 5e-3,
    batch_size: int = 64,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """Trains the outputs, read as logits, on ``labels [n]`` of inputs ``x [n, n_in]``.

    Adam with a cosine rate; every batch runs under updates of its own, drawn by ``seed``, which
    also orders the examples. Edges that are not kept stay out, with their weights as they are.
    Gives the mean cross-entropy of each epoch. Raises :class:`NumericalError` for a NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay)
    calm = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    history: list[float] = []
    for _ in track(range(epochs), "training", epochs):
        total = 0.0
        for chosen in torch.randperm(len(x), generator=generator).split(batch_size):
            logits = network.predict(x[chosen], generator=generator)
            loss = nn.functional.cross_entropy(logits, labels[chosen])
            if not bool(torch.isfinite(loss)):
                raise NumericalError(f"the loss of epoch {len(history)} is {float(loss)}")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(chosen)
        calm.step()
        history.append(total / len(x))
    return history


@torch.no_grad()
def accuracy(network: ARGNN, x: Tensor, labels: Tensor, *, draws: int = 1, seed: int = 0) -> float:
    """Share of ``labels [n]`` that is right, averaged over ``draws`` of the updates."""
    generator = torch.Generator().manual_seed(seed)
    right = 0.0
    for _ in range(draws):
        logits = network.predict(x, generator=generator)
        right += float((logits.argmax(-1) == labels).float().mean())
    return right / draws
