"""A circuit in the formats other programs read.

Everything goes through :meth:`graphprune.Circuit.to_networkx`, so a file holds the kept edges and
the nodes they touch. :func:`export` chooses by the file's suffix.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.drawing.figure import draw
from graphprune.drawing.html import to_html
from graphprune.errors import InputError
from graphprune.export.attribution_graph import to_attribution_graph
from graphprune.mib.files import to_mib_json, to_mib_pt
from graphprune.util.checks import at_least
from graphprune.util.files import write_text
from graphprune.util.plain import csv_text, plain

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit


def export(
    circuit: Circuit,
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    d_model: int | None = None,
) -> Path:
    """Writes ``circuit`` to ``path``, whole or not at all.

    Args:
        circuit: what to write.
        path: the file (for ``circuit`` the folder); one that stands there is replaced, a circuit
            folder is not.
        format: one of :data:`FORMATS`; ``None`` goes by the suffix. ``.json`` is networkx's
            node-link JSON, ``.mib.json`` the field's score file, ``.attribution.json`` what
            circuit-tracer's viewer shows.
        d_model: width of the residual stream, for ``mib`` and ``mib-pt`` where the circuit's
            provenance does not say it.

    Raises :class:`InputError` that lists the formats where none fits, and for a ``d_model`` that
    is no positive integer or beside a format that has no place for it.

    Example:
        >>> export(circuit, folder / "circuit.graphml").name
        'circuit.graphml'
        >>> export(circuit, folder / "circuit.csv").read_text(encoding="utf-8").splitlines()[0]
        'edge,source,target,kind,kept,score'
    """
    chosen = _by_suffix(Path(path)) if format is None else format
    if chosen not in _WRITERS:
        raise InputError(f"no export format {chosen!r}; {_known()}")
    if d_model is None:
        _WRITERS[chosen](circuit, Path(path))
        return Path(path)
    if chosen not in ("mib", "mib-pt"):
        raise InputError(f"d_model is for the formats mib and mib-pt, not for {chosen!r}")
    at_least(d_model, 1, "d_model")
    (to_mib_json if chosen == "mib" else to_mib_pt)(circuit, path, d_model=d_model)
    return Path(path)


def _by_suffix(path: Path) -> str:
    name = path.name.lower()
    fitting = [s for suffixes in FORMATS.values() for s in suffixes if s and name.endswith(s)]
    if fitting:
        suffix = max(fitting, key=len)
        return next(key for key, suffixes in FORMATS.items() if suffix in suffixes)
    if not path.suffix:
        return "circuit"
    raise InputError(f"the suffix of {path} names no export format; {_known()}")


def _known() -> str:
    shown = (f"{name} ({', '.join(s or 'a folder' for s in FORMATS[name])})" for name in FORMATS)
    return f"known are {', '.join(shown)}"


# -------------------------------------------------------------------- networkx

_GEXF = ("id", "pid", "parents", "start", "end", "spells", "slices", "viz")


def _for_files(circuit: Circuit) -> Any:
    """The networkx graph with no value but text, numbers and booleans, as XML formats need."""
    graph = _identified(circuit.to_networkx())
    for _, data in graph.nodes(data=True):
        for key, value in data.items():
            if not isinstance(value, (str, bool, int, float)):
                data[key] = json.dumps(plain(value))
    return graph


def _identified(graph: Any) -> Any:
    """Gives every edge an ``id``: its name, and a number where a wire has an edge's name."""
    seen: set[str] = set()
    for _, _, data in graph.edges(data=True):
        name, number = data["name"], data.get("number", data.get("wire"))
        data["id"] = name
        while data["id"] in seen:
            data["id"], number = f"{name}#{number}", number + 1
        seen.add(data["id"])
    return graph


def _aside(graph: Any, taken: tuple[str, ...]) -> Any:
    """Moves node attributes aside whose names a format takes for its own, ``id`` above all.

    networkx would make nodes with one ``id`` one node in GEXF, and lose it in JSON.
    """
    for _, data in graph.nodes(data=True):
        for key in taken:
            if key in data:
                data[f"attribute_{key}"] = data.pop(key)
    return graph


def _graphml(circuit: Circuit, path: Path) -> None:
    import networkx as nx

    buffer = io.BytesIO()
    nx.write_graphml_xml(
        _legible(_for_files(circuit)), buffer, edge_id_from_attribute="id", encoding="utf-8"
    )
    write_text(path, buffer.getvalue().decode("utf-8"))


def _gexf(circuit: Circuit, path: Path) -> None:
    import networkx as nx

    graph = _aside(_legible(_for_files(circuit)), _GEXF)
    text = "\n".join(nx.generate_gexf(graph, prettyprint=True))
    write_text(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')


def _legible(graph: Any) -> Any:
    """XML 1.0 has no place for control characters and lone surrogates, not even escaped."""
    import networkx as nx

    def clean(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        return "".join(c if _in_xml(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in text)

    renamed = {name: clean(name) for name in graph}
    if len(set(renamed.values())) < len(renamed):
        raise InputError("two node names are the same without the characters XML cannot hold")
    out = nx.relabel_nodes(graph, renamed, copy=True)
    for data in (*(d for _, d in out.nodes(data=True)), *(d for _, _, d in out.edges(data=True))):
        data.update({key: clean(value) for key, value in data.items()})
    return out


def _in_xml(code: int) -> bool:
    return (
        code in (9, 10, 13) or 32 <= code < 0xD800 or (code >= 0xE000 and code & 0xFFFE != 0xFFFE)
    )


def _node_link(circuit: Circuit, path: Path) -> None:
    import networkx as nx

    data = nx.node_link_data(_aside(circuit.to_networkx(), ("id",)), edges="edges")
    write_text(path, json.dumps(plain(data), allow_nan=False, indent=1) + "\n")


def _cytoscape(circuit: Circuit, path: Path) -> None:
    import networkx as nx

    graph = _aside(_identified(circuit.to_networkx()), ("name", "id", "value"))
    data = nx.cytoscape_data(graph)
    write_text(path, json.dumps(plain(data), allow_nan=False, indent=1) + "\n")


# -------------------------------------------------------------------- DOT


def _dot(circuit: Circuit, path: Path) -> None:
    """Written here: networkx's DOT goes through pydot, which stumbles over colons in names."""
    graph = circuit.to_networkx()
    scores = [abs(d["score"]) for _, _, d in graph.edges(data=True) if "score" in d]
    largest = max(scores, default=0.0) or 1.0
    lines = ["digraph circuit {", '  rankdir="BT";', '  node [shape="box", style="rounded"];']
    for name, data in graph.nodes(data=True):
        lines.append(f"  {_quoted(name)} [{_pairs(_without_meaning(data))}];")
    for source, target, data in graph.edges(data=True):
        shown = dict(data)
        if "score" in data:
            shown["penwidth"] = round(0.5 + 3.5 * abs(data["score"]) / largest, 3)
            shown["color"] = "#0072B2" if data["score"] >= 0 else "#D55E00"
        if data.get("fixed"):
            shown["style"] = "dotted"
        if data["kind"] in circuit.graph.ports:
            shown["headlabel"] = data["kind"]
        lines.append(f"  {_quoted(source)} -> {_quoted(target)} [{_pairs(shown)}];")
    by_layer: dict[tuple[Any, Any], list[str]] = {}
    for name, data in graph.nodes(data=True):
        if isinstance(data.get("layer"), int):
            by_layer.setdefault((data["layer"], data["kind"]), []).append(name)
    for names in by_layer.values():
        lines.append(f'  {{ rank="same"; {" ".join(_quoted(n) + ";" for n in names)} }}')
    write_text(path, "\n".join([*lines, "}"]) + "\n")


def _without_meaning(data: dict[str, Any]) -> dict[str, Any]:
    """A node's attributes under names that graphviz does nothing with.

    Its own would draw a foreign file's picture, link to it or hide the node.
    """
    own = {"kind": "kind", "index": "index", "layer": "in_layer"}
    return {own.get(key, f"attribute_{key}"): value for key, value in data.items()}


def _pairs(data: dict[str, Any]) -> str:
    return ", ".join(f"{_quoted(key)}={_quoted(value)}" for key, value in data.items())


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(plain(value))
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


# -------------------------------------------------------------------- the others


def _csv(circuit: Circuit, path: Path) -> None:
    write_text(path, csv_text(circuit.to_frame()))


def _folder(circuit: Circuit, path: Path) -> None:
    circuit.save(path)


FORMATS: dict[str, tuple[str, ...]] = {
    "circuit": ("",),
    "graphml": (".graphml",),
    "gexf": (".gexf",),
    "node-link": (".json", ".node-link.json"),
    "cytoscape": (".cyjs", ".cytoscape.json"),
    "dot": (".dot", ".gv"),
    "mib": (".mib.json",),
    "mib-pt": (".pt",),
    "csv": (".csv",),
    "attribution-graph": (".attribution.json",),
    "html": (".html", ".htm"),
    "figure": (".svg", ".png", ".pdf"),
}
"""The names :func:`export` takes, each with the suffixes that mean it."""

_WRITERS: dict[str, Callable[[Circuit, Path], object]] = {
    "circuit": _folder,
    "graphml": _graphml,
    "gexf": _gexf,
    "node-link": _node_link,
    "cytoscape": _cytoscape,
    "dot": _dot,
    "mib": to_mib_json,
    "mib-pt": to_mib_pt,
    "csv": _csv,
    "attribution-graph": to_attribution_graph,
    "html": to_html,
    "figure": draw,
}
