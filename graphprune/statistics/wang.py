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

from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from graphprune.core.ablation import AblationLike, said_or_own
from graphprune.core.mask import EdgeMask
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.util.checks import at_least
from graphprune.util.numbers import bootstrap_interval, few_examples

from .result import Finding
from .runs import MetricLike, RunOptions, Runs, circuit_of

__all__ = ["completeness", "minimality"]

Over = Literal["edges", "nodes"]


class _Parts:
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
            nodes = torch.unique(graph.edge_index[0, numbers])
            self.names = [graph.nodes[n].name for n in nodes.tolist()]
            self.covers = graph.edge_index[0] == nodes[:, None]
        else:
            raise InputError(f"over is edges or nodes, got {over!r}")
        self.kept = circuit.kept

    def __len__(self) -> int:
        return len(self.names)

    def knocked(self, sets: Tensor) -> Tensor:
        """``[K, E]`` bool: edges that go with sets ``[K, n]`` bool of components."""
        return (sets.float() @ self.covers.float()) > 0

    def named(self, chosen: Tensor) -> list[str]:
        return [name for name, inside in zip(self.names, chosen.tolist(), strict=True) if inside]


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
    metric: MetricLike = None,
    ablation: AblationLike | None = None,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """How differently circuit and model fail when parts of the circuit are knocked out of both.

    Args:
        over: components are ``"edges"`` or ``"nodes"``.
        draws: random sets K.
        greedy: greedy searches, each of ``steps`` growths by the best of ``width`` random
            components.
        bar: the share of F(M) - F(all ablated) that the worst may reach for the circuit to pass;
            ``None`` sets none.

    The table has a row for each K: how it was found, its size, F of both, and the incompleteness.
    """
    circuit = circuit_of(model, mask)
    parts = _Parts(circuit, over)
    for value, what in ((draws, "draws"), (greedy, "greedy")):
        at_least(value, 0, what)
    at_least(steps, 1, "steps")
    at_least(width, 1, "width")
    scorer = Runs(model, task, said_or_own(ablation, mask), metric, **options)
    generator = np.random.default_rng(at_least(seed, 0, "seed"))

    def both(sets: Tensor) -> tuple[Tensor, Tensor]:
        out = parts.knocked(sets)
        scores = scorer(torch.cat([parts.kept & ~out, ~out]), "completeness")
        return scores[: len(sets)], scores[len(sets) :]

    rows: list[dict[str, Any]] = []
    best: tuple[float, Tensor, Tensor, Tensor] | None = None

    def note(kind: str, sets: Tensor) -> Tensor:
        nonlocal best
        ours, theirs = both(sets)
        gaps = (ours.mean(1) - theirs.mean(1)).abs()
        for i in range(len(sets)):
            rows.append(
                {
                    "found": kind,
                    "size": int(sets[i].sum()),
                    "circuit": float(ours[i].mean()),
                    "model": float(theirs[i].mean()),
                    "incompleteness": float(gaps[i]),
                }
            )
            if best is None or float(gaps[i]) > best[0]:
                best = float(gaps[i]), sets[i].clone(), ours[i], theirs[i]
        return gaps

    n = len(parts)
    note("none", torch.zeros(1, n, dtype=torch.bool))
    if draws:
        note("random", torch.from_numpy(generator.random((draws, n)) < 0.5))
    for _ in range(greedy):
        grown = torch.zeros(n, dtype=torch.bool)
        for _ in range(min(steps, n)):
            rest = np.flatnonzero(~grown.numpy())
            tried = torch.from_numpy(generator.permutation(rest)[:width])
            sets = grown.repeat(len(tried), 1)
            sets[torch.arange(len(tried)), tried] = True
            grown = sets[int(note("greedy", sets).argmax())]
    assert best is not None
    worst, chosen, ours, theirs = best
    low, high = bootstrap_interval(ours - theirs, seed=seed)
    gap = abs(scorer.gap)
    relative = worst / gap if scorer.unit.why is None else None
    by = {
        kind: [r["incompleteness"] for r in rows if r["found"] == kind]
        for kind in ("random", "greedy")
    }
    shown = f"{worst:.3g}" + (
        "" if relative is None else f", {relative:.0%} of what there is to lose"
    )
    return Finding(
        name="completeness",
        null=None,
        said=f"circuit and model differ by at most {shown}, after {int(chosen.sum())} of {n} "
        f"{over} are knocked out of both ({len(rows)} sets tried)",
        passed=_passed(worst <= scorer.noise, relative, bar),
        values={
            "worst": worst,
            "relative": relative,
            "low": low,
            "high": high,
            "knocked_out": parts.named(chosen),
            "random_mean": float(np.mean(by["random"])) if by["random"] else None,
            "greedy_worst": max(by["greedy"], default=None),
            "none": rows[0]["incompleteness"],
        },
        rows=tuple(rows),
        settings={
            **scorer.settings,
            "over": over,
            "draws": draws,
            "greedy": greedy,
            "steps": steps,
            "width": width,
            "bar": bar,
            "seed": seed,
            "edges": circuit.num_kept,
        },
        remarks=(
            "low and high are an interval over examples at the worst set found, which was chosen "
            "for being worst; other sets may be worse still",
            *(f"relative: {said}" for said in (scorer.unit.why, scorer.unit.note) if said),
            *filter(None, [few_examples(len(ours))]),
        ),
    )


def _passed(same: bool, relative: float | None, bar: float | None) -> bool | None:
    """Whether the worst is within the bar; where nothing is lost, whatever that is a share of."""
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
    metric: MetricLike = None,
    ablation: AblationLike | None = None,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """How much each component of the circuit can matter, given the best set K found for it.

    Args:
        over: components are ``"edges"`` or ``"nodes"``.
        draws: random sets K, shared by all components.
        steps, width: greedy growths of K for each component, each by the best of ``width`` random
            components.
        bar: components whose best effect is below this share of F(M) - F(all ablated) are named in
            ``values["idle"]``; a circuit passes without any.

    A component costs ``2 (1 + draws + steps * width)`` runs.
    """
    circuit = circuit_of(model, mask)
    parts = _Parts(circuit, over)
    at_least(draws, 0, "draws")
    at_least(steps, 0, "steps")
    at_least(width, 1, "width")
    if not bar >= 0:
        raise InputError(f"bar is a share of at least 0, got {bar!r}")
    scorer = Runs(model, task, said_or_own(ablation, mask), metric, **options)
    generator = np.random.default_rng(at_least(seed, 0, "seed"))
    n = len(parts)
    shared = torch.from_numpy(generator.random((draws, n)) < 0.5)
    start = torch.cat([torch.zeros(1, n, dtype=torch.bool), shared])

    def effects(sets: Tensor, number: int) -> Tensor:
        """``[K]``: ``|F(C \\ (K + v)) - F(C \\ K)|`` for sets ``[K, n]``."""
        less, more = sets.clone(), sets.clone()
        less[:, number], more[:, number] = False, True
        masks = torch.cat([parts.kept & ~parts.knocked(s) for s in (less, more)])
        means = scorer(masks, "minimality").mean(1)
        return (means[: len(sets)] - means[len(sets) :]).abs()

    rows = []
    for number, name in enumerate(parts.names):
        found = effects(start, number)
        alone = float(found[0])
        place = int(found.argmax())
        most, chosen = float(found[place]), start[place].clone()
        grown = torch.zeros(n, dtype=torch.bool)
        for _ in range(steps):
            rest = np.flatnonzero(~grown.numpy())
            rest = rest[rest != number]
            if not len(rest):
                break
            tried = torch.from_numpy(generator.permutation(rest)[:width])
            sets = grown.repeat(len(tried), 1)
            sets[torch.arange(len(tried)), tried] = True
            found = effects(sets, number)
            place = int(found.argmax())
            grown = sets[place]
            if float(found[place]) > most:
                most, chosen = float(found[place]), grown.clone()
        chosen[number] = False
        rows.append(
            {"component": name, "effect": most, "alone": alone, "size": int(chosen.sum()),
             "with": parts.named(chosen)}
        )  # fmt: skip
    gap = abs(scorer.gap)
    # Where full and ablated are not told apart, a share of their difference is no bar.
    least = max(bar * gap if scorer.unit.why is None else 0.0, scorer.noise)
    idle = [str(row["component"]) for row in rows if float(str(row["effect"])) <= least]
    some = f": {', '.join(idle[:3])}{', ...' if len(idle) > 3 else ''}" if idle else ""
    return Finding(
        name="minimality (Wang)",
        null=None,
        said=f"{len(idle)} of {n} {over} change the metric by at most {least:.3g} whatever else is "
        f"knocked out{some}",
        passed=not idle,
        values={
            "idle": idle,
            "least": min(float(str(row["effect"])) for row in rows),
            "bar": least,
            "gap": gap,
        },
        rows=tuple(sorted(rows, key=lambda row: float(str(row["effect"])))),
        settings={
            **scorer.settings,
            "over": over,
            "draws": draws,
            "steps": steps,
            "width": width,
            "seed": seed,
            "edges": circuit.num_kept,
        },
        remarks=tuple(f"bar: {said}" for said in (scorer.unit.why, scorer.unit.note) if said),
    )
