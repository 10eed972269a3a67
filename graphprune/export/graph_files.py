"""Directed graphs with weights, read from other programs' files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import FormatError, InputError
from graphprune.export.folder import load_circuit
from graphprune.util.checks import usable
from graphprune.util.readers import read_json, validated, xml_bytes

_Name = str | int | FiniteFloat | list[str | int | FiniteFloat]
# What networkx raises of XML that is well formed and no graph of its format: its readers look
# attributes up, convert texts and call methods of elements without checks of their own.
_NO_GRAPH = (ParseError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Node(_Part):
    id: _Name


class _Edge(_Part):
    source: _Name
    target: _Name
    key: _Name | None = None


class _NodeLink(_Part):
    directed: Literal[True]
    multigraph: bool = True
    graph: dict[str, Any] = {}
    nodes: list[_Node]
    edges: list[_Edge]


def read_weighted_graph(path: Path) -> tuple[ComputationalGraph, Tensor | None]:
    """The graph in a file and its edges' weights ``[E]`` float64, ``None`` where one has none.

    Args:
        path: a circuit's folder (the kept edges; no weights), or a .graphml, .gexf or node-link
            .json file. The weights are the edges' ``weight``, finite numbers.

    Raises :class:`InputError` for another kind of file and for an undirected graph,
    :class:`FormatError` for a file that is not what its suffix says.

    Example:
        >>> _ = gp.export.export(circuit, folder / "circuit.graphml")
        >>> read_weighted_graph(folder / "circuit.graphml")
        (ComputationalGraph(10 nodes, 12 edges, directed), None)
    """
    if not usable(path).exists():
        raise InputError(f"{path} is not there")
    if path.is_dir():
        drawn = load_circuit(path).to_networkx()
    elif path.suffix in (".graphml", ".gexf"):
        drawn = _from_xml(path)
    elif path.suffix == ".json":
        drawn = _from_node_link(path)
    else:
        raise InputError(
            f"expected a circuit's folder or a .graphml, .gexf or node-link .json file, got {path}"
        )
    if not drawn.is_directed():
        raise InputError(f"{path} holds an undirected graph; imaginary parts need a directed one")
    names = [str(node) for node in drawn]
    if len(set(names)) < len(names):
        raise FormatError(f"{path}: two nodes have the same name once written as text")
    pairs = [(str(u), str(v)) for u, v in drawn.edges()]
    graph = ComputationalGraph.from_edges(pairs, names)
    weights: list[Any] = [data.get("weight") for _, _, data in drawn.edges(data=True)]
    if not weights or any(not isinstance(w, int | float) for w in weights):
        return graph, None
    values = torch.tensor([float(w) for w in weights], dtype=torch.float64)
    if not bool(values.isfinite().all()):
        raise FormatError(f"{path}: the weight of an edge is NaN or infinite")
    return graph, values


def _from_xml(path: Path) -> Any:
    import networkx as nx

    try:
        data = io.BytesIO(xml_bytes(path))
        return nx.read_graphml(data) if path.suffix == ".graphml" else nx.read_gexf(data)
    except (OSError, nx.NetworkXException, *_NO_GRAPH) as error:
        reason = str(error) or type(error).__name__
        raise FormatError(f"{path} is no readable {path.suffix} file: {reason}") from error


def _from_node_link(path: Path) -> Any:
    import networkx as nx

    document = read_json(path, strict=False)
    if isinstance(document, dict) and document.get("directed", False) is False:
        raise InputError(f"{path} holds an undirected graph; imaginary parts need a directed one")
    validated(_NodeLink, document, path)
    return nx.node_link_graph(document, edges="edges")
