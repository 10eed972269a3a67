"""Completeness and minimality as Wang et al. 2023 define them (arXiv 2211.00593).

F is the mean of the task's metric, C the circuit, M the model, K a set of the circuit's components.

- *Completeness*: ``|F(C \\ K) - F(M \\ K)|`` is small for every K in C: with K knocked out of both,
  circuit and model fail alike, so that no backup lies outside. K is sampled at random (each subset
  as likely as another) and sought greedily: K grows by the best of a few random components, a
  number of times from the start.
- *Minimality*: every component v has some K in C without v for which
  ``|F(C \\ (K + v)) - F(C \\ K)|`` is large. The authors choose K by hand; here it is sought: the
  empty set, random sets and the same greedy growth.

Both depend on the sets tried, so they are bounds: the worst incompleteness is at least, a
component's best effect at least, what is found. Components are edges, or nodes (as theirs: a node
that is out sends its ablation value to all it feeds).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from graphprune.core.mask import EdgeMask
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.util.checks import at_least
from graphprune.util.numbers import bootstrap_interval, few_examples

from .finding import Finding, first_names
from .mask_evaluator import MaskEvaluator, RunOptions, require_circuit

Over = Literal["edges", "nodes"]


class _Components:
    """The circuit's components: names, and the graph's edges that go out with each."""

    def __init__(self, circuit: EdgeMask, over: str) -> None:
        graph = circuit.graph
        numbers = torch.nonzero(circuit.kept)[:, 0]
        if over == "edges":
            self.names = graph.edge_names.at(numbers)
            self.covers = torch.zeros(len(numbers), graph.num_edges, dtype=torch.bool)
            self.covers[torch.arange(len(numbers)), numbers] = True
        elif over == "nodes":
            # What only reads is no component: nothing it sends can be knocked out.
            senders = graph.untied.edge_index[0]
            nodes = torch.unique(senders[graph.per_message(circuit.kept)])
            self.names = [graph.nodes[n].name for n in nodes.tolist()]
            self.covers = graph.per_edge((senders[:, None] == nodes).int()).T > 0
        else:
            raise InputError(f"over is edges or nodes, got {over!r}")
        self.kept = circuit.kept

    def __len__(self) -> int:
        return len(self.names)

    def knocked(self, sets: Tensor) -> Tensor:
        """``[K, E]`` bool: edges that go with sets ``[K, n]`` bool of components."""
        return (sets.float() @ self.covers.float()) > 0

    def names_of(self, chosen: Tensor) -> list[str]:
        return [name for name, inside in zip(self.names, chosen.tolist(), strict=True) if inside]

    def random_sets(self, draws: int, generator: np.random.Generator) -> Tensor:
        """``[draws, n]`` bool: each subset as likely as another."""
        return torch.from_numpy(generator.random((draws, len(self))) < 0.5)


def _grow(
    effect: Callable[[Tensor], Tensor],
    n: int,
    steps: int,
    width: int,
    generator: np.random.Generator,
    without: int | None = None,
) -> None:
    """Grows a set of n components, each time by the one of ``width`` random ones of most effect.

    ``effect`` maps sets ``[K, n]`` to ``[K]`` and keeps what it sees; ``without`` never joins.
    """
    grown = torch.zeros(n, dtype=torch.bool)
    for _ in range(steps):
        rest = np.flatnonzero(~grown.numpy())
        rest = rest if without is None else rest[rest != without]
        if not len(rest):
            return
        tried = torch.from_numpy(generator.permutation(rest)[:width])
        sets = grown.repeat(len(tried), 1)
        sets[torch.arange(len(tried)), tried] = True
        grown = sets[int(effect(sets).argmax())]


class _Largest:
    """The set of the largest effect so far, the first of equal ones."""

    def __init__(self) -> None:
        self.effect = -np.inf
        self.chosen = torch.empty(0)

    def see(self, effects: Tensor, sets: Tensor) -> int | None:
        """The number of a set that is larger than all before."""
        place = int(effects.argmax())
        if float(effects[place]) <= self.effect:
            return None
        self.effect, self.chosen = float(effects[place]), sets[place].clone()
        return place


def completeness(
    model: MaskedModel,
    task: Task,
    mask: Any,
    *,
    over: Over = "edges",
    draws: int = 100,
    greedy: int = 10,
    steps: int = 10,
    width: int = 5,
    bar: float | None = None,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """The largest difference of circuit and model with parts of the circuit knocked out of both.

    Args:
        over: components are ``"edges"`` or ``"nodes"``.
        draws: random sets K.
        greedy: greedy searches, each of ``steps`` growths by the best of ``width`` random
            components.
        bar: the share of F(M) - F(all ablated) that the worst may reach for the circuit to pass;
            ``None`` sets none.

    The table has a row for each K: how it was found, its size, F of both, and the incompleteness.

    Example:
        >>> completeness(model, task, mask, draws=5, greedy=1, steps=2)
        Finding('completeness: circuit and model differ by at most 0.806, 19% of what there is to
        lose, after 6 of 12 edges are knocked out of both (16 sets tried)')
    """
    circuit = require_circuit(model, mask)
    components = _Components(circuit, over)
    for value, what, least in (
        (draws, "draws", 0), (greedy, "greedy", 0), (steps, "steps", 1), (width, "width", 1),
    ):  # fmt: skip
        at_least(value, least, what)
    evaluator = MaskEvaluator(model, task, mask, **options)
    generator = np.random.default_rng(at_least(seed, 0, "seed"))
    n = len(components)
    rows: list[dict[str, Any]] = []
    worst = _Largest()
    at_worst = torch.empty(0)  # [n examples], circuit minus model

    def note(kind: str, sets: Tensor) -> Tensor:
        nonlocal at_worst
        out = components.knocked(sets)
        values = evaluator(torch.cat([components.kept & ~out, ~out]), "completeness")
        ours, theirs = values[: len(sets)], values[len(sets) :]
        gaps = (ours.mean(1) - theirs.mean(1)).abs()
        columns = (sets.sum(1), ours.mean(1), theirs.mean(1), gaps)
        for size, circuit_mean, model_mean, gap in zip(*(c.tolist() for c in columns), strict=True):
            rows.append(
                {
                    "found": kind,
                    "size": size,
                    "circuit": circuit_mean,
                    "model": model_mean,
                    "incompleteness": gap,
                }
            )
        place = worst.see(gaps, sets)
        if place is not None:
            at_worst = ours[place] - theirs[place]
        return gaps

    note("none", torch.zeros(1, n, dtype=torch.bool))
    if draws:
        note("random", components.random_sets(draws, generator))
    for _ in range(greedy):
        _grow(lambda sets: note("greedy", sets), n, steps, width, generator)
    low, high = bootstrap_interval(at_worst, seed=seed)
    relative = worst.effect / abs(evaluator.gap) if evaluator.metric_range.why is None else None
    random, grown = (
        [row["incompleteness"] for row in rows if row["found"] == kind]
        for kind in ("random", "greedy")
    )
    shown = f"{worst.effect:.3g}" + (
        "" if relative is None else f", {relative:.0%} of what there is to lose"
    )
    return Finding(
        name="completeness",
        null=None,
        said=f"circuit and model differ by at most {shown}, after {int(worst.chosen.sum())} of {n} "
        f"{over} are knocked out of both ({len(rows)} sets tried)",
        passed=_passed(worst.effect <= evaluator.noise, relative, bar),
        values={
            "worst": worst.effect,
            "relative": relative,
            "low": low,
            "high": high,
            "knocked_out": components.names_of(worst.chosen),
            "random_mean": float(np.mean(random)) if random else None,
            "greedy_worst": max(grown, default=None),
            "none": rows[0]["incompleteness"],
        },
        rows=rows,
        settings=evaluator.settings(
            circuit, over=over, draws=draws, greedy=greedy, steps=steps, width=width, bar=bar,
            seed=seed,
        ),
        remarks=[
            "low and high are an interval over examples at the worst set found, which was chosen "
            "for being worst; other sets may be worse still",
            *evaluator.range_remarks("relative"),
            *filter(None, [few_examples(len(at_worst))]),
        ],
    )  # fmt: skip


def _passed(same: bool, relative: float | None, bar: float | None) -> bool | None:
    """``True`` if the worst is within the bar, or is nothing, whatever it is a share of."""
    if bar is None or (relative is None and not same):
        return None
    return same or relative is None or relative <= bar


def minimality(
    model: MaskedModel,
    task: Task,
    mask: Any,
    *,
    over: Over = "edges",
    draws: int = 10,
    steps: int = 3,
    width: int = 5,
    bar: float = 0.01,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """The effect of each component of the circuit, given the best set K found for it.

    Args:
        over: components are ``"edges"`` or ``"nodes"``.
        draws: random sets K, shared by all components.
        steps, width: greedy growths of K for each component, each by the best of ``width`` random
            components.
        bar: components whose best effect is below this share of F(M) - F(all ablated) are named in
            ``values["idle"]``; a circuit passes without any.

    A component costs ``2 (1 + draws + steps * width)`` runs.

    Example:
        >>> minimality(model, task, mask, draws=3, steps=2)
        Finding('minimality (Wang): 0 of 12 edges change the metric by at most 0.0432 whatever
        else is knocked out')
    """
    circuit = require_circuit(model, mask)
    components = _Components(circuit, over)
    for value, what, least in ((draws, "draws", 0), (steps, "steps", 0), (width, "width", 1)):
        at_least(value, least, what)
    if not bar >= 0:
        raise InputError(f"bar is a share of at least 0, got {bar!r}")
    evaluator = MaskEvaluator(model, task, mask, **options)
    generator = np.random.default_rng(at_least(seed, 0, "seed"))
    n = len(components)
    shared = torch.cat(
        [torch.zeros(1, n, dtype=torch.bool), components.random_sets(draws, generator)]
    )

    def effects(sets: Tensor, number: int) -> Tensor:
        """``[K]``: ``|F(C \\ (K + v)) - F(C \\ K)|`` for sets ``[K, n]``."""
        less, more = sets.clone(), sets.clone()
        less[:, number], more[:, number] = False, True
        masks = torch.cat([components.kept & ~components.knocked(s) for s in (less, more)])
        means = evaluator(masks, "minimality").mean(1)
        return (means[: len(sets)] - means[len(sets) :]).abs()

    rows: list[dict[str, Any]] = []
    for number, name in enumerate(components.names):
        most = _Largest()

        def note(sets: Tensor, number: int = number, most: _Largest = most) -> Tensor:
            seen = effects(sets, number)
            most.see(seen, sets)
            return seen

        alone = float(note(shared)[0])
        _grow(note, n, steps, width, generator, without=number)
        most.chosen[number] = False
        rows.append(
            {
                "component": name,
                "effect": most.effect,
                "alone": alone,
                "size": int(most.chosen.sum()),
                "with": components.names_of(most.chosen),
            }
        )
    gap = abs(evaluator.gap)
    # Where full and ablated are not told apart, a share of their difference is no bar.
    least_effect = max(bar * gap if evaluator.metric_range.why is None else 0.0, evaluator.noise)
    idle = [row["component"] for row in rows if row["effect"] <= least_effect]
    return Finding(
        name="minimality (Wang)",
        null=None,
        said=f"{len(idle)} of {n} {over} change the metric by at most {least_effect:.3g} whatever "
        f"else is knocked out{first_names(idle)}",
        passed=not idle,
        values={
            "idle": idle,
            "least": min(row["effect"] for row in rows),
            "bar": least_effect,
            "gap": gap,
        },
        rows=sorted(rows, key=lambda row: row["effect"]),
        settings=evaluator.settings(
            circuit, over=over, draws=draws, steps=steps, width=width, seed=seed
        ),
        remarks=evaluator.range_remarks("bar"),
    )
