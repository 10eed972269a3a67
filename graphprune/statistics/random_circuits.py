"""Random circuits: of equal size, of equal degrees, and a circuit inflated by a random path.

Five kinds, all of exactly equal size, from weak to strict:

- ``"size"``: any edges, each set as likely as another;
- ``"composition"``: as many edges as the circuit has in every stratum, a class of edges that agree
  in level and kind of both ends and in kind (:func:`graphprune.comparison.make_strata`);
- ``"paths"``: edges of random paths from an input to an output, as Shi et al. (arXiv 2410.13032)
  draw theirs: every edge leads somewhere. Theirs have *at least* the size asked for, these exactly:
  where the last path is longer than what is left, it loses its first edges;
- ``"ends"``: every edge of the circuit keeps one of its two ends, which one by chance, and gets
  another at the other side: degrees are equal at the ends kept, so about half of each;
- ``"degree"``: the circuit's own edges, rewired two at a time (u->v, x->y become u->y, x->v, where
  the graph has both): every node keeps the number of edges it sends and, at each of its inputs
  (q, k, v, ...), the number it reads. Small circuits and sparse graphs have few such pairs, or
  none: the result then stays close to the circuit.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.comparison import make_strata
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError, unknown_name
from graphprune.util.checks import at_least

Match = Literal["size", "composition", "paths", "ends", "degree"]
_SWEEPS = 30  # rounds of rewiring; each offers every edge of the circuit once
_WIRE = -1  # in place of an edge's number
_MISSING = -1  # in place of an edge that the graph does not have
_TRIES = 10_000  # walks without a new edge before there is thought to be none


class RandomWalks:
    """Walks from an input node to an output node; loops are erased.

    Each step takes one of the edges that leave a node and can still reach an output, all as likely.
    Wires are walked too, and are no edges. ``allowed [E]`` says which edges may be taken.
    """

    def __init__(self, graph: ComputationalGraph, allowed: NDArray[np.bool_] | None = None) -> None:
        every = np.ones(graph.num_edges, dtype=bool) if allowed is None else allowed
        leads = graph.reachable(graph.output_nodes, every, backward=True)
        source, target = (
            np.concatenate([own, fixed])
            for own, fixed in zip(
                graph.untied.edge_index.numpy(), graph.fixed_edge_index.numpy(), strict=True
            )
        )
        wires = graph.fixed_edge_index.shape[1]
        own = graph.per_message(torch.arange(graph.num_edges)).numpy()
        number = np.concatenate([own, np.full(wires, _WIRE)])
        useful = leads[target] & np.concatenate([every[own], np.ones(wires, dtype=bool)])
        source, target, number = source[useful], target[useful], number[useful]
        order = np.argsort(source, kind="stable")
        self._target, self._number = target[order], number[order]
        self._start = np.searchsorted(source[order], np.arange(graph.num_nodes + 1))
        self._edges = graph.num_edges
        self._outputs = frozenset(graph.output_nodes)
        self._first = [n for n in graph.input_nodes if self._start[n] < self._start[n + 1]]
        if not self._first:
            raise InputError("no path leads from an input of the graph to an output")

    def path(self, generator: np.random.Generator) -> list[int]:
        """Edge numbers of one walk, in order."""
        while True:
            node = int(generator.choice(self._first))
            nodes, edges = [node], list[int]()
            while self._start[node] < self._start[node + 1]:
                step = int(generator.integers(self._start[node], self._start[node + 1]))
                node = int(self._target[step])
                if node in nodes:
                    place = nodes.index(node)
                    del nodes[place + 1 :], edges[place:]
                else:
                    nodes.append(node)
                    edges.append(int(self._number[step]))
                if node in self._outputs and any(edge != _WIRE for edge in edges):
                    return [edge for edge in edges if edge != _WIRE]

    def inflating(
        self, kept: NDArray[np.bool_], generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Edges outside ``kept`` of a path that has at least one."""
        for _ in range(_TRIES):
            path = np.unique(self.path(generator))
            new = path[~kept[path]]
            if new.size:
                return new
        raise InputError(
            f"{_TRIES} random paths held no edge outside the circuit: it has all that lead from an "
            "input to an output"
        )

    def union(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Exactly ``count`` edges of random paths."""
        kept = np.zeros(self._edges, dtype=bool)
        chosen: list[int] = []
        idle = 0
        while len(chosen) < count:
            new = [edge for edge in self.path(generator) if not kept[edge]]
            idle = 0 if new else idle + 1
            if idle > _TRIES:
                raise InputError(
                    f"random paths hold {len(chosen)} edges, {count} were asked for; take "
                    "match='size'"
                )
            new = new[max(0, len(new) - (count - len(chosen))) :]
            kept[new] = True
            chosen += new
        return np.array(chosen, dtype=np.int64)


def random_circuits(
    mask: EdgeMask, count: int = 100, *, match: Match = "paths", seed: int = 0
) -> list[EdgeMask]:
    """Random circuits with as many edges as ``mask``; see the module.

    Raises :class:`InputError` where the graph has none of the kind asked for.

    Example:
        >>> graph = ComputationalGraph.from_edges(
        ...     [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "out"), ("d", "out")])
        >>> mask = EdgeMask.from_edges(graph, ["a->c", "b->d", "c->out"])
        >>> (rewired,) = random_circuits(mask, 1, match="degree", seed=1)
        >>> rewired.edges(), {m.num_kept for m in random_circuits(mask, 20)}
        (['a->d', 'b->c', 'c->out'], {3})
    """
    return [EdgeMask(mask.graph, row.float()) for row in draw(mask, count, match, seed)]


def draw(
    mask: EdgeMask,
    count: int,
    match: str,
    seed: int,
    *,
    allowed: NDArray[np.bool_] | None = None,
    size: int | None = None,
) -> Tensor:
    """``[count, E]`` bool; see :func:`random_circuits`.

    ``size`` edges (``None`` means as many as the mask has), of those that are ``allowed [E]``;
    kinds that start from the circuit's own edges heed neither.
    """
    at_least(count, 1, "count")
    generator = np.random.default_rng(at_least(seed, 0, "seed"))
    graph, size = mask.graph, mask.num_kept if size is None else size
    out = torch.zeros(count, graph.num_edges, dtype=torch.bool)
    if match == "size":
        pool = np.arange(graph.num_edges) if allowed is None else np.flatnonzero(allowed)
        if size > pool.size:
            raise InputError(f"{size} random edges were asked for, there are {pool.size}")
        for row in out:
            row[torch.from_numpy(generator.permutation(pool)[:size])] = True
    elif match == "composition":
        strata, kept = make_strata(graph), mask.kept.numpy()
        for row in out:
            row[:] = torch.from_numpy(kept[strata.shuffled(generator)])
    elif match == "paths":
        walks = RandomWalks(graph, allowed)
        for row in out:
            row[torch.from_numpy(walks.union(size, generator))] = True
    elif match in ("ends", "degree"):
        wiring = _Wiring(graph)
        start = torch.nonzero(mask.kept)[:, 0].numpy()
        change = wiring.rewired if match == "degree" else wiring.moved
        moved = False
        for row in out:
            edges = change(start, generator)
            moved |= not np.array_equal(np.sort(edges), start)
            row[torch.from_numpy(edges)] = True
        if not moved:
            raise InputError(
                "no two edges of the circuit can be rewired: the one circuit with its degrees is "
                "the circuit itself; take match='ends' or 'paths'"
            )
    else:
        raise unknown_name("match", match, get_args(Match))
    return out


class _Wiring:
    """Looks edges up by their ends, and rewires circuits."""

    def __init__(self, graph: ComputationalGraph) -> None:
        source, target = graph.edge_index.numpy()
        # An input of a node: the node with the kind of edge it reads there.
        self._source = source
        self._input = target * len(graph.edge_kinds) + graph.edge_kind.numpy().astype(np.int64)
        self._inputs = graph.num_nodes * len(graph.edge_kinds)
        self._by = {
            "source": (source, np.argsort(source, kind="stable")),
            "input": (self._input, np.argsort(self._input, kind="stable")),
        }
        keys = self._key(source, self._input)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def _key(self, source: NDArray[np.int64], into: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(source * self._inputs + into, dtype=np.int64)

    def _find(self, source: NDArray[np.int64], into: NDArray[np.int64]) -> NDArray[np.int64]:
        """Edge numbers, or :data:`_MISSING`."""
        keys = self._key(source, into)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, self._order[place], _MISSING)

    def rewired(
        self, start: NDArray[np.int64], generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Edge numbers after many rounds in which all edges are paired and exchange their ends."""
        edges = start.copy()
        kept = np.zeros(len(self._source), dtype=bool)
        kept[edges] = True
        half = len(edges) // 2
        for _ in range(_SWEEPS):
            order = generator.permutation(len(edges))
            one, two = order[:half], order[half : 2 * half]
            a, b = edges[one], edges[two]
            new_a = self._find(self._source[a], self._input[b])
            new_b = self._find(self._source[b], self._input[a])
            fits = (new_a != _MISSING) & (new_b != _MISSING)
            fits[fits] = ~kept[new_a[fits]] & ~kept[new_b[fits]] & (new_a[fits] != new_b[fits])
            fits &= generator.random(half) < 0.5  # stay put half of the time: the chain mixes
            # Of pairs that want the same edge the first gets it.
            wanted = np.stack([np.where(fits, new, _MISSING) for new in (new_a, new_b)], 1).ravel()
            _, first = np.unique(wanted, return_index=True)
            leading = np.zeros(wanted.size, dtype=bool)
            leading[first] = True
            fits &= leading.reshape(-1, 2).all(1)
            kept[a[fits]] = kept[b[fits]] = False
            edges[one[fits]], edges[two[fits]] = new_a[fits], new_b[fits]
            kept[edges[one[fits]]] = kept[edges[two[fits]]] = True
        return edges

    def moved(self, start: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """Edge numbers after every edge was exchanged for another one at one of its ends."""
        kept = np.zeros(len(self._source), dtype=bool)
        kept[start] = True
        edges = start.copy()
        for place in generator.permutation(len(edges)):
            sides = ["source", "input"]
            if generator.random() < 0.5:
                sides.reverse()
            for side in sides:
                ends, order = self._by[side]
                end = ends[edges[place]]
                first, last = np.searchsorted(ends, [end, end + 1], sorter=order)
                others = order[first:last]
                others = others[~kept[others]]
                if others.size:
                    kept[edges[place]] = False
                    edges[place] = generator.choice(others)
                    kept[edges[place]] = True
                    break
        return edges
