"""Circuits as files: the library's own format, the field's, networkx's, figures and a page."""

from graphprune.export.figure import draw
from graphprune.export.formats import FORMATS, export, to_explanation
from graphprune.export.html import to_html
from graphprune.export.mib import (
    MIBNodes,
    from_mib_json,
    from_mib_nodes,
    from_mib_pt,
    to_mib_json,
    to_mib_pt,
)

__all__ = [
    "FORMATS",
    "MIBNodes",
    "draw",
    "export",
    "from_mib_json",
    "from_mib_nodes",
    "from_mib_pt",
    "to_explanation",
    "to_html",
    "to_mib_json",
    "to_mib_pt",
]
