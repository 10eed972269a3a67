"""Which scores are told apart from 0: scores over resampled examples, and intervals from them.

An interval is the score plus and minus t times the bootstrap's standard deviation, which is the
standard error already. (The published filter, Nikankin et al., arXiv 2510.25786, divides it by the
root of the number of resamples once more; with its ten resamples an interval is 3.2 times too
narrow and holds the truth less than half of the time. ``kind="paper"`` is that one.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from graphprune.core.mask import EdgeMask, budget
from graphprune.core.scores import EdgeScores, Ranking, ranked_values
from graphprune.errors import InputError, unknown_name
from graphprune.selection.rules import take
from graphprune.util.checks import at_least
from graphprune.util.interrupts import whole_results
from graphprune.util.numbers import ranking
from graphprune.util.progress import track

if TYPE_CHECKING:
    from graphprune.core.method import Scorer
    from graphprune.core.model import MaskedModel
    from graphprune.core.task import Task

IntervalKind = Literal["t", "percentile", "paper"]


@dataclass(frozen=True, eq=False)
class BootstrapScores:
    """Scores with their resamples.

    Args:
        scores: over all examples.
        samples: ``[R, E]`` scores over R resamples.
        inflate: what the resamples' standard deviation is to be multiplied by to be the standard
            error (resampling n examples makes it smaller by ``sqrt((n - 1) / n)``).
        freedom: degrees of freedom of the t distribution.

    Example:
        >>> resampled = gp.bootstrap_scores(gp.EAP(), lm, prompts, resamples=5)
        >>> low, high = resampled.interval()
        >>> low.shape, int(resampled.certain().sum()) < lm.graph.num_edges
        (torch.Size([110]), True)
    """

    scores: EdgeScores
    samples: Tensor
    inflate: float = 1.0
    freedom: int | None = None

    @property
    def error(self) -> Tensor:
        """``[E]``: the standard error of each score."""
        return self.samples.double().std(0, correction=1).float() * self.inflate

    def interval(self, level: float = 0.95, kind: IntervalKind = "t") -> tuple[Tensor, Tensor]:
        """``[E]`` and ``[E]``: the ends of each score's interval.

        ``"t"``: see the module; ``"percentile"``: of the resamples, which needs many;
        ``"paper"``: too narrow, see the module.
        """
        from scipy.stats import norm, t

        if not 0 < level < 1:
            raise InputError(f"a level is a share in (0, 1), got {level!r}")
        tail = (1 - level) / 2
        count = len(self.samples)
        if kind == "percentile":
            if count * tail < 1:
                raise InputError(
                    f"{count} resamples have no {tail:.3g} quantile: use at least "
                    f"{math.ceil(1 / tail)}, or kind='t'"
                )
            ends = torch.quantile(self.samples, torch.tensor([tail, 1 - tail]), dim=0)
            return ends[0], ends[1]
        if kind == "paper":
            mean = self.samples.mean(0)
            half = float(norm.ppf(1 - tail)) * self.samples.std(0, correction=0) / math.sqrt(count)
        elif kind == "t":
            mean = self.scores.values
            half = float(t.ppf(1 - tail, self.freedom or count - 1)) * self.error
        else:
            raise unknown_name("kind", kind, get_args(IntervalKind))
        return mean - half, mean + half

    def certain(self, level: float = 0.95, kind: IntervalKind = "t") -> Tensor:
        """``[E]`` bool: edges whose interval excludes 0."""
        low, high = self.interval(level, kind)
        return (low > 0) | (high < 0)

    def select(
        self,
        size: float,
        by: Ranking = "abs",
        *,
        level: float = 0.95,
        kind: IntervalKind = "t",
        connected: bool = True,
        from_inputs: bool = True,
    ) -> EdgeMask:
        """Exactly ``size`` edges: the certain ones by their ranking, then the others by theirs.

        By sign, edges that are certainly harmful come last of all.

        Args:
            size: a count (int) or a share of all edges.
            by: ``"abs"`` or ``"signed"``.
            level, kind: of the intervals.
            connected: whether all of them lie on paths to the output; ``False``: the first
                ``size``, dead ends among them, as published.
            from_inputs: see :meth:`EdgeMask.prune_dead_ends`.
        """
        graph, values = self.scores.graph, self.scores.values
        order = ranking(ranked_values(values, by))
        sure = self.certain(level, kind)
        tier = torch.where(sure, 0, 1)
        if by == "signed":
            tier = torch.where(sure & (values < 0), 2, tier)
        order = order[torch.sort(tier[order], stable=True).indices]
        count = budget(size, graph.num_edges)
        return take(graph, order, count, connected=connected, from_inputs=from_inputs)

    def __repr__(self) -> str:
        return f"BootstrapScores({self.scores!r}, {len(self.samples)} resamples)"


def bootstrap_scores(
    scorer: Scorer,
    model: MaskedModel,
    task: Task,
    *,
    resamples: int = 10,
    blocks: int | None = None,
    seed: int = 0,
) -> BootstrapScores:
    """Scores over resampled examples.

    Args:
        scorer: any scorer.
        model, task: what it scores, on all of the task's examples and on resamples of as many.
        resamples: how many; each costs what the scorer costs once.
        blocks: for scorers whose scores are means over examples (attributions): the examples are
            dealt at random into so many blocks of (nearly) equal size, scored once each and
            resampled as blocks; all resamples together then cost what the scorer costs once.
        seed: of the resamples.

    Raises :class:`InputError` for tasks too small to resample.

    Example:
        >>> resampled = bootstrap_scores(gp.EAP(), lm, prompts, resamples=5)
        >>> resampled.samples.shape, resampled.select(20)
        (torch.Size([5, 110]), EdgeMask(20 of 110 edges, 18.1818%))
    """

    def score(some: Task) -> EdgeScores:
        with whole_results():
            return scorer.score(model, some)

    at_least(resamples, 2, "resamples")
    total = len(task)
    if total < 2:
        raise InputError(f"resampling needs at least 2 examples, the task has {total}")
    generator = np.random.default_rng(seed)
    rows = []
    if blocks is None:
        scores = score(task)
        for _ in track(range(resamples), "bootstrap", resamples):
            some = generator.integers(total, size=total)
            rows.append(score(task.subset(some.tolist())).values)
        inflate = math.sqrt(total / (total - 1))
        return BootstrapScores(scores, torch.stack(rows), inflate, resamples - 1)
    if not 2 <= at_least(blocks, 2, "blocks") <= total:
        raise InputError(f"{total} examples cannot be dealt into {blocks} blocks")
    parts = np.array_split(generator.permutation(total), blocks)
    for part in track(parts, "bootstrap blocks", blocks):
        rows.append(score(task.subset(np.sort(part).tolist())).values)
    weights = torch.tensor([len(part) / total for part in parts])
    table = torch.stack(rows)
    scores = EdgeScores.computed(model.graph, weights @ table, method=scorer.label)
    scores = replace(scores, ablation=scorer.chosen_ablation)
    drawn = torch.from_numpy(
        generator.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)
    ).float()
    # Resamples of blocks weigh each by its size: the mean over the examples drawn.
    drawn = drawn * weights
    samples = (drawn / drawn.sum(1, keepdim=True)) @ table
    inflate = math.sqrt(blocks / (blocks - 1))
    return BootstrapScores(scores, samples, inflate, min(resamples, blocks) - 1)
