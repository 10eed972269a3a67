"""What an optimisation leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from graphprune.mask import EdgeMask
from graphprune.model import Ablation
from graphprune.scores import EdgeScores

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Fit"]


@dataclass(frozen=True, eq=False)
class Fit:
    """A mask with what was learned on the way.

    Args:
        mask: the circuit, of exactly the size asked for.
        scores: the gates' final values as a ranking, all positive and the larger the more an edge
            is kept; 1 is the last edge inside the budget. Dead ends, earlier masks that did better
            and the local search make the mask differ from it.
        ablation: what stands in for ablated messages, learned constants included.
        history: a row for every step kept: ``step``, ``loss``, ``density`` (of the gates), ``rate``
            (the factor on learning rates) and what the method adds.
        loss: the mask's own loss on the training examples, where it was measured.
        path: circuits of other sizes met on the way down, by their number of edges.
        stopped: why it ended before its last step, or ``""``.
        notes: plain values: sizes before and after polishing, caching, steps done.
        gates: ``[E]``: the edges' own parameters at the end (log alphas, logits of keep chances,
            scores), without the senders'.
    """

    mask: EdgeMask
    scores: EdgeScores
    ablation: Ablation
    history: list[dict[str, float]] = field(default_factory=list)
    loss: float | None = None
    path: dict[int, EdgeMask] = field(default_factory=dict)
    stopped: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    gates: Tensor | None = None

    def to_frame(self) -> pd.DataFrame:
        """The history as a table."""
        import pandas as pd

        return pd.DataFrame(self.history)

    def __repr__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.4g}"
        return f"Fit({self.mask!r}{loss}{', ' + self.stopped if self.stopped else ''})"
