"""Adapters from architectures to masked models, and compiled programs with a known circuit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lazy_loader

from graphprune.util.attributes import suggest_names

if TYPE_CHECKING:
    from graphprune.core.model import MaskedModel
    from graphprune.core.task import Task

    from .gnn import (
        ARGNN,
        AttentionExplainer,
        CaptumExplainer,
        DropEdge,
        GNNExplainer,
        LotteryTickets,
        PGExplainer,
        retrained,
    )
    from .rasp import rasp_programs, tracr_truth, tracr_wiring

__all__ = [
    "ARGNN",
    "AttentionExplainer",
    "CaptumExplainer",
    "DropEdge",
    "GNNExplainer",
    "LotteryTickets",
    "PGExplainer",
    "rasp_programs",
    "retrained",
    "tracr",
    "tracr_truth",
    "tracr_wiring",
]

# torch_geometric takes seconds to import, and most uses of this package have no need of it.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "gnn": [
            "ARGNN",
            "AttentionExplainer",
            "CaptumExplainer",
            "DropEdge",
            "GNNExplainer",
            "LotteryTickets",
            "PGExplainer",
            "retrained",
        ],
        "rasp": ["rasp_programs", "tracr_truth", "tracr_wiring"],
    },
)


def tracr(
    compiled: Any,
    inputs: Literal["all"] | Iterable[Sequence[Any]] = "all",
    *,
    name: str = "rasp",
    seed: int = 0,
    batch_size: int = 64,
    dtype: Any = None,
) -> tuple[MaskedModel, Task]:
    """A Tracr-compiled program as a masked model, and its inputs as a task.

    Args:
        compiled: what ``tracr.compiler.compiling.compile_rasp_to_model`` gives, or
            ``gp.adapters.rasp_programs()["reverse"].compile()``.
        inputs: ``"all"``: every sequence of every length up to the longest; or sequences of the
            program's tokens. BOS is put first in either case; every position behind it is an answer
            position, but for those where a categorical program has no value (RASP's ``None``).
        name: the task's.
        seed: draws the corrupted inputs, in which every token differs from the original.
        batch_size: the task's.
        dtype: of the converted weights; ``None`` means float64, which keeps the steep ramps of
            Tracr's MLPs exact.

    Returns:
        The model, with token and position embeddings as two nodes, and the task. Its metric is the
        KL divergence from the full program over ten times its outputs (categorical programs) or
        the squared error (numerical ones), and says which outputs are the same: the same value at
        every position, or numbers within 1e-3.

    Raises:
        MissingExtraError: Tracr is not installed.
        InputError: ``compiled`` is no compiled program, or an input is none of its inputs.

    Example:
        >>> tracr(rasp_programs()["reverse"].compile(), [(1, 2, 3), (2, 1, 1)])  # doctest: +SKIP
    """
    import torch

    from .hf import self_check
    from .lm import LanguageModel
    from .rasp import TRACR, convert, program_task

    module = convert(compiled, dtype=torch.float64 if dtype is None else dtype)
    model = LanguageModel(module, TRACR, embedding_nodes=2)
    self_check(model)
    return model, program_task(module, inputs, name=name, seed=seed, batch_size=batch_size)


suggest_names(__name__)
