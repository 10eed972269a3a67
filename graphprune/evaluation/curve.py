"""Faithfulness over circuit sizes, integrated as the MIB benchmark does.

CPR is the integral of f over the kept fraction (edges ranked by signed score), CMD that of |1 - f|
(ranked by absolute score), both by the trapezoid rule over the *requested* fractions. Over MIB's
ten sizes, 0.001 to 1, a perfect ranking has CPR 0.999 and CMD 0. Most of that weight lies above a
half, so the area over the logarithm of the size stands beside them, and CPR with f cut at 1, since
plain CPR rewards overshooting the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.capabilities import identity_of
from graphprune.core.ablation import AblationLike, resolve_ablation, said_or_own
from graphprune.core.mask import EdgeMask, budget, require_same_graph
from graphprune.core.model import Ablation, MaskedModel, require_model
from graphprune.core.result import Result, scores_of
from graphprune.core.sanity_checks import MetricRange
from graphprune.core.scores import EdgeScores, Ranking
from graphprune.core.sizes import MIB_SIZES
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.selection.selectors import circuit_of_size

from .report import EvaluationReport, evaluate_all

if TYPE_CHECKING:
    import pandas as pd


_Numbers = Sequence[float] | NDArray[np.float64]


def area(sizes: _Numbers, values: _Numbers) -> float:
    """The integral of ``values [n]`` over ``sizes [n]`` by the trapezoid rule.

    Example:
        >>> round(area([0.001, 0.5, 1.0], [0.0, 0.0, 1.0]), 3)  # f = 0 up to a half
        0.25
    """
    return float(np.trapezoid(values, sizes))


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve:
    """f at every size for each ranking.

    ``f[ranking]`` and ``kept[ranking]`` go with ``sizes`` (fractions of all edges); ``kept`` counts
    edges after dead ends are pruned. ``values`` holds the metric itself; ``full`` and ``ablated``
    its ends, and ``note`` what is to be said of their difference, the unit of f, and of sizes
    that keep no edge. ``intervals[ranking]`` has the ends of each f's 95 % interval over examples
    (see :meth:`EvaluationReport.interval`), ``model`` the name of the model.

    Example:
        >>> curve = FaithfulnessCurve(
        ...     sizes=(0.5, 1.0),
        ...     f={"signed": [0.8, 1.0], "abs": [0.6, 1.0]},
        ...     kept={"signed": [5, 10], "abs": [5, 10]},
        ...     values={"signed": [8, 10], "abs": [6, 10]},
        ...     full=10,
        ...     ablated=0,
        ...     metric="logit_diff",
        ... )
        >>> curve.cpr, curve.cmd
        (0.45, 0.1)
    """

    sizes: tuple[float, ...]
    f: dict[str, list[float]]
    kept: dict[str, list[int]]
    values: dict[str, list[float]]
    full: float
    ablated: float
    metric: str
    method: str = ""
    note: str = ""
    intervals: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    model: str = ""

    def __repr__(self) -> str:
        ends = f"{len(self.sizes)} sizes from {min(self.sizes):g} to {max(self.sizes):g}"
        return f"FaithfulnessCurve({ends}, metric={self.metric!r}, method={self.method!r})"

    def _of(self, ranking: Ranking) -> NDArray[np.float64]:
        if ranking not in self.f:
            raise InputError(f"this curve was not computed for the {ranking!r} ranking")
        return np.array(self.f[ranking], dtype=np.float64)

    @property
    def cpr(self) -> float:
        """Integral of f, edges ranked by signed score (MIB; higher is better)."""
        return area(self.sizes, self._of("signed"))

    @property
    def cpr_clipped(self) -> float:
        """CPR with f cut at 1: overshooting the model earns nothing."""
        return area(self.sizes, np.minimum(self._of("signed"), 1.0))

    @property
    def cmd(self) -> float:
        """Integral of ``|1 - f|``, edges ranked by absolute score (MIB; lower is better)."""
        return area(self.sizes, np.abs(1 - self._of("abs")))

    @property
    def average(self) -> float:
        """Mean of f over the sizes, signed ranking, as MIB's results have it beside the areas."""
        return float(np.mean(self._of("signed")))

    @property
    def cpr_log(self) -> float:
        """Integral of f over the natural log of the size (not divided by its length).

        MIB's evaluator gives this and :attr:`cmd_log` where ``log_scale`` is set, as its queue for
        submissions does.
        """
        return area(np.log(self.sizes), self._of("signed"))

    @property
    def cmd_log(self) -> float:
        """Integral of ``|1 - f|`` over the natural log of the size, absolute ranking."""
        return area(np.log(self.sizes), np.abs(1 - self._of("abs")))

    @property
    def log_area(self) -> float:
        """Mean of f (cut at 1) over the log of the size, signed ranking: small circuits count."""
        logs = np.log(self.sizes)
        return area(logs, np.minimum(self._of("signed"), 1.0)) / float(logs[-1] - logs[0])

    def to_frame(self) -> pd.DataFrame:
        """A row for each ranking and size: ranking, size, kept, value, faithfulness."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "method": self.method,
                    "ranking": ranking,
                    "size": size,
                    "kept": self.kept[ranking][i],
                    self.metric: self.values[ranking][i],
                    "faithfulness": self.f[ranking][i],
                }
                for ranking in self.f
                for i, size in enumerate(self.sizes)
            ]
        )

    def summary(self) -> dict[str, float]:
        """CPR, clipped CPR, CMD and the log area, those that were computed."""
        out: dict[str, float] = {}
        if "signed" in self.f:
            out |= {"cpr": self.cpr, "cpr_clipped": self.cpr_clipped, "log_area": self.log_area}
        if "abs" in self.f:
            out["cmd"] = self.cmd
        return out

    def plot(self, path: Any = None, ax: Any = None, *, beside: Sequence[Any] = ()) -> Any:
        """Draws f against the size with its intervals; writes ``path`` if given; gives the axes.

        ``beside`` are further curves; those of :class:`~graphprune.Random` scores become a grey
        baseline.
        """
        from graphprune.drawing.plots import plot_curves

        return plot_curves([self, *beside], path=path, ax=ax)


def faithfulness_curve(
    model: MaskedModel,
    task: Task,
    scores: EdgeScores | Result,
    sizes: Sequence[float] | None = None,
    *,
    rankings: Sequence[Ranking] = ("signed", "abs"),
    ablation: AblationLike | None = None,
    batch_size: int | None = None,
) -> FaithfulnessCurve:
    """F of the circuits that ``scores`` give at every size.

    At each size the top edges are taken and dead ends pruned, as MIB does (under zero and mean
    ablation only those that do not reach an output: others still send something). The clean and
    ablated passes run once a batch and give both ends of the curve; every other circuit is one
    sparse masked pass.

    Args:
        scores: a ranking, or the result of a method that gave one.
        ablation: ``None`` takes the one that the result was found under, else counterfactual.
        sizes: increasing fractions in (0, 1] or numbers of edges (int); ``None`` takes MIB's ten.
        rankings: ``"signed"`` (needed for CPR), ``"abs"`` (needed for CMD).

    Raises :class:`InputError` where the full and the wholly ablated model are not told apart on the
    task: f, CPR, CMD and the log area are shares of their difference (see
    :mod:`graphprune.core.sanity_checks`).

    Example:
        >>> curve = faithfulness_curve(model, task, scores, sizes=[6, 12, 24])
        >>> curve.kept["abs"], [round(f, 2) for f in curve.f["abs"]]
        ([6, 12, 24], [1.11, 0.91, 1.0])
    """
    fractions, masks, chosen = circuits_of(
        model, task, scores, sizes, rankings=rankings, ablation=ablation
    )
    return curve_of(model, task, masks, fractions, chosen, batch_size, scores_of(scores).method)


def circuits_of(
    model: MaskedModel,
    task: Task,
    scores: EdgeScores | Result,
    sizes: Sequence[float] | None = None,
    *,
    rankings: Sequence[Ranking] = ("signed", "abs"),
    ablation: AblationLike | None = None,
    found_under: AblationLike | None = None,
) -> tuple[tuple[float, ...], dict[Ranking, list[EdgeMask]], Ablation]:
    """The sizes as fractions, the circuits a curve measures at them, and the ablation.

    Arguments as :func:`faithfulness_curve` takes them; ``found_under`` is the ablation whose dead
    ends go (``None`` means that of the curve), where circuits are judged under another.
    """
    require_model(model)
    own, scores = said_or_own(ablation, scores), scores_of(scores)
    require_same_graph(model.graph, scores.graph, "the model and the scores")
    if not rankings:
        raise InputError("a curve needs a ranking: 'signed', 'abs' or both")
    requested = tuple(MIB_SIZES if sizes is None else sizes)
    total = model.graph.num_edges
    counts = [budget(size, total) for size in requested]
    fractions = tuple(s / total if isinstance(s, int) else float(s) for s in requested)
    if len(fractions) < 2 or list(fractions) != sorted(set(fractions)):
        raise InputError(f"sizes must be at least two, increasing, got {requested}")
    chosen = resolve_ablation(model, task, own)
    under = chosen if found_under is None else found_under
    masks: dict[Ranking, list[EdgeMask]] = {
        by: [circuit_of_size(scores, n, by, ablation=under, task=task) for n in counts]
        for by in rankings
    }
    return fractions, masks, chosen


def curve_of(
    model: MaskedModel,
    task: Task,
    masks: Mapping[Ranking, Sequence[EdgeMask]],
    fractions: tuple[float, ...],
    ablation: Ablation,
    batch_size: int | None = None,
    method: str = "",
) -> FaithfulnessCurve:
    """F of circuits, ``masks[ranking]`` one for each of ``fractions``; equal ones run once."""
    names: dict[EdgeMask, str] = {}
    for by, named in masks.items():
        for fraction, mask in zip(fractions, named, strict=True):
            names.setdefault(mask, f"at size {fraction!r} ({by})")
    inner = {mask: name for mask, name in names.items() if not _is_end(mask)}
    to_run = inner or dict(itertools.islice(names.items(), 1))  # the ends come with any circuit
    by_name = evaluate_all(
        model,
        task,
        {name: mask for mask, name in to_run.items()},
        ablation=ablation,
        metrics=[task.metric],
        batch_size=batch_size,
    )
    reports = {mask: by_name[name] for mask, name in to_run.items()}
    model_name = str(identity_of(model).get("model") or "")
    return curve_of_reports(masks, fractions, reports, method, model_name)


def _is_end(mask: EdgeMask) -> bool:
    """``True`` for an end of the curve's scale: no edge kept, or every edge."""
    return mask.num_kept in (0, mask.graph.num_edges)


def curve_of_reports(
    masks: Mapping[Ranking, Sequence[EdgeMask]],
    fractions: tuple[float, ...],
    reports: Mapping[EdgeMask, EvaluationReport],
    method: str = "",
    model: str = "",
) -> FaithfulnessCurve:
    """The curve of circuits that :func:`evaluate_all` has measured.

    ``reports`` has at least one circuit, and every one of ``masks`` that keeps some edges but not
    all: the others are the ends of the scale.
    """
    report = next(iter(reports.values()))
    metric = str(report.settings["metric"])
    if "faithfulness" not in report.values:
        why = report.absent["faithfulness"]
        raise InputError(f"faithfulness is not defined on task {report.settings['task']!r}: {why}")
    full, ablated = report.full[metric], report.ablated[metric]
    values: dict[str, list[float]] = {by: [] for by in masks}
    f: dict[str, list[float]] = {by: [] for by in masks}
    intervals: dict[str, list[tuple[float, float]]] = {by: [] for by in masks}
    for by, circuits in masks.items():
        for mask in circuits:
            if _is_end(mask):
                values[by].append(full if mask.num_kept else ablated)
                f[by].append(1.0 if mask.num_kept else 0.0)
                intervals[by].append((f[by][-1], f[by][-1]))
            else:
                values[by].append(float(reports[mask].examples[metric].mean()))
                f[by].append(reports[mask]["faithfulness"])
                intervals[by].append(reports[mask].interval("faithfulness"))
    kept: dict[str, list[int]] = {by: [m.num_kept for m in masks[by]] for by in masks}
    notes = [MetricRange.of(report.full_examples[metric], report.ablated_examples[metric]).note]
    edges = next(iter(masks.values()))[0].graph.num_edges
    none = [size for size in fractions if int(size * edges) < 1]
    if none:
        notes.append(
            f"{len(none)} of the {len(fractions)} sizes are less than one of the graph's {edges} "
            "edges and keep none: f is 0 there; sizes= takes numbers of edges"
        )
    note = "; ".join(filter(None, notes))
    return FaithfulnessCurve(
        fractions, f, kept, values, full, ablated, metric, method, note, intervals, model
    )
