"""Sanity controls: what the same procedure finds where there is nothing to find.

The found circuit is judged on the task beside

- ``random``: circuits of its size, of random paths;
- ``degree``: circuits with every node's degrees; where those share more than three quarters of
  their edges with the found one (few others have its degrees), circuits of which every edge keeps
  one end;
- ``labels``: the method run again on shuffled labels. A ranking by magnitude may still find the
  circuit: where an edge matters on every example, what is left of its effect after half of the
  labels were exchanged is noise, but larger noise than that of an edge which never matters;
- ``weights``: the method run again on a model whose weights are shuffled. The circuit is then
  judged on the user's model: a method that finds as good a circuit there reads the graph, not the
  model (as Adebayo et al. 2018, arXiv 1810.03292, for saliency maps).

Each gives a Monte Carlo p-value of "the found circuit is one of the controls",
``(1 + #{controls at least as good}) / (1 + controls)``, corrected over the kinds by Holm.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Unpack

import torch
from torch import Tensor

from graphprune.comparison.p_values import holm, rank_p
from graphprune.core.ablation import own_ablation
from graphprune.core.mask import EdgeMask
from graphprune.core.method import ablation_of
from graphprune.core.model import MaskedModel
from graphprune.core.sanity_checks import MetricRange
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.util.checks import at_least, require_one_of, share
from graphprune.util.progress import track

from .finding import Finding
from .mask_evaluator import MaskEvaluator, RunOptions, require_circuit
from .method_runs import label_of, run_method
from .random_circuits import draw
from .random_controls import randomised_weights, shuffled_labels

KINDS = ("random", "degree", "labels", "weights")


def controls(
    model: MaskedModel,
    task: Task,
    mask: Any = None,
    *,
    method: Any = None,
    size: float | None = None,
    test: Task | None = None,
    kinds: Sequence[str] = KINDS,
    draws: int | None = None,
    reruns: int | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """The circuit's rank among controls of each kind.

    Args:
        task: what the circuit is found on.
        mask: the circuit; ``None`` takes what ``method`` finds on ``task``.
        method: a scorer (with ``size``), a pruner, or a function ``(model, task) -> EdgeMask``;
            needed for ``"labels"`` and ``"weights"``, and run ``reruns`` times for each.
        test: what circuits are judged on; ``None`` takes ``task`` itself, which favours the found
            one over controls that never saw it: give held-out examples.
        kinds: which controls.
        draws: random circuits of each kind; the least p-value is ``1 / (1 + draws)``. ``None``
            means 100, or as many as ``alpha`` and the number of kinds need.
        reruns: of the method, whose own seed is held: only labels or weights differ. The least
            p-value is ``1 / (1 + reruns)``. ``None`` means as many as let a kind be beaten whatever
            the others give, the least with ``kinds / (1 + reruns) < alpha``: 80 for four kinds at
            .05, 20 for one kind alone. With fewer the summary may say "underpowered".
        options: see :class:`~graphprune.statistics.mask_evaluator.RunOptions`. Circuits are judged
            by the mean of its ``metric`` (the test task's own by default), under its ``ablation``
            (by default a circuit's own, else the method's, else counterfactual).

    The table has a row for each circuit: kind, edges, the metric's mean, faithfulness, and the
    share of the found circuit's edges it has.

    Example:
        >>> controls(model, task, mask, kinds=["random", "degree"], draws=19)
        Finding('controls: the circuit of 12 edges does not beat the controls random, degree
        (random 0.1, degree 0.1) (p = 0.1; underpowered: with these settings p is at least 0.1, so
        that nothing is rejected at 0.05; draws=40 or more would tell)')
    """
    share(alpha, "alpha")
    at_least(seed, 0, "seed")
    for kind in kinds:
        require_one_of(kind, KINDS, "kind")
    if not kinds or len(set(kinds)) < len(kinds):
        raise InputError(f"kinds are some of {', '.join(KINDS)}, each once; got {list(kinds)!r}")
    if method is None and ("labels" in kinds or "weights" in kinds):
        raise InputError("shuffled labels and weights need the method to run again: give method=")
    if mask is None:
        if method is None:
            raise InputError("give the circuit, or the method that finds it")
        mask = run_method(method, model, task, size).mask
    circuit = require_circuit(model, mask, full=False)
    enough = controls_needed(len(kinds), alpha)
    draws = max(100, enough) if draws is None else at_least(draws, 1, "draws")
    reruns = enough if reruns is None else at_least(reruns, 1, "reruns")
    if options.get("ablation") is None:
        options["ablation"] = own_ablation([mask]) or ablation_of(method)
    evaluator = MaskEvaluator(model, task if test is None else test, **options)
    own = float(evaluator(circuit.kept[None], "controls")[0].mean())
    metric_range = evaluator.metric_range
    rows = [_row("found", circuit.kept, circuit.kept, own, metric_range)]
    p_values: dict[str, float] = {}
    overlaps: dict[str, float] = {}
    for kind in kinds:
        if kind == "random":
            masks = draw(circuit, draws, "paths", seed)
        elif kind == "degree":
            masks = _of_equal_degrees(circuit, draws, seed)
        else:
            masks = _of_reruns(kind, model, task, method, size, reruns, seed)
        means = evaluator(masks, f"controls: {kind}").mean(1)
        pairs = zip(masks, means.tolist(), strict=True)
        rows += [_row(kind, mask, circuit.kept, mean, metric_range) for mask, mean in pairs]
        p_values[kind] = rank_p(own, means.numpy(), tolerance=evaluator.noise)
        overlaps[kind] = float((masks & circuit.kept).sum(1).double().mean()) / circuit.num_kept
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    beaten = [kind for kind, p in corrected.items() if p <= alpha]
    lost = [kind for kind in kinds if kind not in beaten]
    counts = {"random": draws, "degree": draws, "labels": reruns, "weights": reruns}
    least = holm([1 / (1 + counts[kind]) for kind in kinds])
    weak = [kind for kind, p in zip(kinds, least, strict=True) if p > alpha]
    settings = ["draws" if kind in ("random", "degree") else "reruns" for kind in weak]
    more = " and ".join(f"{name}={enough}" for name in dict.fromkeys(settings))
    remarks = []
    if test is None:
        remarks.append("judged on the examples the circuit was found on")
    remarks += evaluator.range_remarks("faithfulness")
    outcome = "beats all controls" if not lost else f"does not beat the controls {', '.join(lost)}"
    detail = ", ".join(f"{kind} {p:.2g}" for kind, p in corrected.items())
    return Finding(
        name="controls",
        null="the circuit is one of the controls (some kind of them)",
        said=f"the circuit of {circuit.num_kept} edges {outcome} ({detail})",
        p_value=max(corrected.values()),
        alpha=alpha,
        passed=not lost,
        least_p=max(least),
        remedy=f"{more} or more would tell" if more else "",
        correction=f"Holm over {len(kinds)} kinds; p_value is the largest",
        values={
            "p_values": p_values,
            "p_corrected": corrected,
            "shared": overlaps,
            "metric": own,
            "faithfulness": rows[0]["faithfulness"],
        },
        rows=rows,
        settings=evaluator.settings(
            circuit, method=None if method is None else label_of(method), size=size,
            kinds=list(kinds), draws=draws, reruns=reruns, seed=seed,
        ),
        remarks=remarks,
    )  # fmt: skip


def controls_needed(kinds: int, alpha: float) -> int:
    """The fewest controls n of each kind with ``kinds / (1 + n) < alpha``.

    Example:
        >>> controls_needed(4, 0.05), controls_needed(1, 0.05)
        (80, 20)
    """
    count = int(kinds / alpha)
    while kinds / (1 + count) >= alpha:
        count += 1
    return count


def _row(
    kind: str, mask: Tensor, circuit: Tensor, value: float, metric_range: MetricRange
) -> dict[str, Any]:
    return {
        "circuit": kind,
        "edges": int(mask.sum()),
        "metric": value,
        "faithfulness": metric_range.share(value) if metric_range.why is None else None,
        "shared": int((mask & circuit).sum()) / int(circuit.sum()),
    }


def _of_reruns(
    kind: str,
    model: MaskedModel,
    task: Task,
    method: Any,
    size: float | None,
    reruns: int,
    seed: int,
) -> Tensor:
    """``[reruns, E]`` bool: what the method finds on shuffled labels or weights."""
    masks = []
    for number in track(range(reruns), f"controls: {kind}", reruns):
        if kind == "labels":
            run = run_method(method, model, shuffled_labels(task, seed + number), size)
        else:
            with randomised_weights(model, seed + number) as other:
                run = run_method(method, other, task, size)
        masks.append(run.mask.kept)
    return torch.stack(masks)


def _of_equal_degrees(circuit: EdgeMask, draws: int, seed: int) -> Tensor:
    with suppress(InputError):  # no edge can be rewired
        rows = draw(circuit, draws, "degree", seed)
        shared = float((rows & circuit.kept).sum(1).double().mean()) / circuit.num_kept
        if shared <= 0.75:
            return rows
    return draw(circuit, draws, "ends", seed)
