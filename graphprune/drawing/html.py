"""One interactive page that needs nothing but itself: no network, no server, no other file.

The page carries its data as JSON and a short program. A content security policy in it forbids every
request and every script but these. Names and figures are data: they are escaped in the file and
reach the page as text only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from graphprune.drawing.network import NodeColours
from graphprune.drawing.page_data import page_data
from graphprune.drawing.subject import CircuitLike
from graphprune.util.files import write_text


def to_html(
    circuit: CircuitLike,
    path: str | os.PathLike[str],
    *,
    max_edges: int = 20_000,
    title: str | None = None,
    against: CircuitLike | None = None,
    names: tuple[str, str] = ("this", "the other"),
    answers: Sequence[Mapping[str, Any]] | None = None,
    node_colours: NodeColours = None,
) -> Path:
    """Writes the interactive page.

    Args:
        circuit: what to show; its report and provenance stand beside the drawing.
        path: the file; one that stands there is replaced.
        max_edges: beyond that many, the strongest by ``|score|`` without dead ends are in the page,
            and it says so.
        title: ``None`` names the model and the task where they are known.
        against: a second circuit of the graph; edges of both, of the first and of the second alone
            get colours of their own.
        names: what the two circuits are called.
        answers: prompts with both answers, as :func:`prompt_answers` gives them; ``None`` takes
            ``circuit.provenance["notes"]["answers"]`` where it is there.
        node_colours: as for :func:`draw`, in graphs that flow in circles.

    Example:
        >>> page = to_html(circuit, folder / "circuit.html", node_colours=data.y)
        >>> "<html" in page.read_text(encoding="utf-8")
        True
    """
    folder = files("graphprune.drawing")
    view, program = (
        (folder / name).read_text(encoding="utf-8") for name in ("page_view.js", "page.js")
    )
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    data = page_data(circuit, max_edges, against, names, answers, node_colours)
    page = template.substitute(
        title=html.escape(circuit.title if title is None else title),
        policy=_policy(view, program),
        data=_escaped(data),
        view=view,
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
