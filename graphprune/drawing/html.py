"""One interactive page that needs nothing but itself: no network, no server, no other file.

The page carries its data as JSON, the vendored Cytoscape.js and a short program. A content security
policy in it forbids every request and every script but these two. Names and figures are data: they
are escaped in the file and reach the page as text only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from graphprune.drawing.layout import DrawnNode, Picture, picture, port_offset
from graphprune.drawing.routing import Points, route
from graphprune.errors import InputError
from graphprune.util.files import write_text
from graphprune.util.plain import flatten

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit

__all__ = ["to_html"]

WIDTH, HEIGHT = 0.86, 0.44
SCALE_X, SCALE_Y = 80.0, 84.0


def to_html(
    circuit: Circuit,
    path: str | os.PathLike[str],
    *,
    max_edges: int = 1500,
    title: str | None = None,
) -> Path:
    """Writes the interactive page.

    Args:
        circuit: what to show; its report and provenance stand beside the drawing.
        path: the file; one that stands there is replaced.
        max_edges: beyond that many, the strongest by ``|score|`` are in the page, and it says so.
        title: ``None`` names the model and the task where they are known.
    """
    if max_edges < 1:
        raise InputError(f"max_edges must be at least 1, got {max_edges}")
    folder = files("graphprune.drawing")
    library = (folder / "vendor" / "cytoscape.min.js").read_text(encoding="utf-8")
    program = (folder / "page.js").read_text(encoding="utf-8")
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=html.escape(circuit.title if title is None else title),
        policy=_policy(library, program),
        data=_escaped(_data(circuit, picture(circuit, max_edges))),
        library=library,
        program=program,
    )
    return write_text(path, page)


def _policy(*scripts: str) -> str:
    """Nothing may be loaded, and only these scripts may run."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _escaped(data: dict[str, Any]) -> str:
    """JSON that no HTML parser takes for markup, whatever the names are."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _stretch(shown: Picture) -> float:
    """How much wider than in the figure: a tall circuit leaves a page's sides empty."""
    wide = (max((n.x for n in shown.nodes), default=0.0) + 1) * SCALE_X
    high = (max((n.y for n in shown.nodes), default=0.0) + 1) * SCALE_Y
    return min(max(0.8 * high / wide, 1.0), 1.8) if shown.layered else 1.0


def _data(circuit: Circuit, shown: Picture) -> dict[str, Any]:
    scale = SCALE_X * _stretch(shown)

    def port(node: DrawnNode, kind: str) -> float:
        return port_offset(node, kind) * SCALE_X / scale

    paths = route(shown, WIDTH * SCALE_X / scale, HEIGHT, port) if shown.layered else None
    edges = []
    for i, edge in enumerate(shown.edges):
        entry: dict[str, Any] = {
            "name": edge.name,
            "source": edge.source,
            "target": edge.target,
            "kind": edge.kind,
            "score": edge.score,
            "kept": edge.kept,
            "wire": edge.wire,
        }
        if paths is not None:
            end = port_offset(shown.nodes[edge.target], edge.kind) * SCALE_X
            entry["from"] = f"0px {-HEIGHT / 2 * SCALE_Y:.1f}px"
            entry["to"] = f"{end:.1f}px {HEIGHT / 2 * SCALE_Y:.1f}px"
            entry["weights"], entry["distances"] = _relative(paths[i], scale)
        edges.append(entry)
    kinds = [kind for kind in circuit.graph.edge_kinds if any(e.kind == kind for e in shown.edges)]
    return {
        "nodes": [
            {
                "name": node.name,
                "label": node.name if len(node.name) <= 11 else f"{node.name[:5]}…{node.name[-5:]}",
                "kind": node.kind,
                "layer": node.layer,
                "x": round(node.x * scale, 2),
                "y": round(-node.y * SCALE_Y, 2),
                "ports": [[p, round(port_offset(node, p) * SCALE_X, 2)] for p in node.ports],
            }
            for node in shown.nodes
        ],
        "edges": edges,
        "kinds": kinds,
        "box": [WIDTH * SCALE_X, HEIGHT * SCALE_Y],
        "largest": shown.largest,
        "scored": circuit.scores is not None,
        "shown": shown.shown_edges,
        "total": shown.total_edges,
        "report": flatten(circuit.report_dict()),
        "provenance": flatten(circuit.provenance),
    }


def _relative(points: Points, scale: float) -> tuple[list[float], list[float]]:
    """Control points as Cytoscape wants them: along and across the line from end to end."""
    on_page = [(x * scale, -y * SCALE_Y) for x, y in points]
    (x0, y0), (x1, y1) = on_page[0], on_page[-1]
    dx, dy = x1 - x0, y1 - y0
    square = dx * dx + dy * dy or 1.0
    weights, distances = [], []
    for i, (x, y) in enumerate(on_page):
        if i % 3:
            along, across = (x - x0) * dx + (y - y0) * dy, (y - y0) * dx - (x - x0) * dy
            weights.append(round(along / square, 4))
            distances.append(round(across / square**0.5, 2))
    return weights, distances
