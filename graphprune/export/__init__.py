"""Circuits as files: the library's own format, the field's, networkx's, figures and a page."""

from graphprune.drawing.answers import prompt_answers
from graphprune.drawing.figure import draw, plot
from graphprune.drawing.html import to_html
from graphprune.drawing.side_by_side import plot_circuits
from graphprune.export.attribution_graph import attribution_graph, to_attribution_graph
from graphprune.export.explanation import to_explanation
from graphprune.export.formats import FORMATS, export
from graphprune.export.hub import from_hub, load, push_to_hub
from graphprune.mib.content import MIBNodes
from graphprune.mib.files import from_mib_json, from_mib_nodes, from_mib_pt, to_mib_json, to_mib_pt
from graphprune.mib.layout import field_graph
from graphprune.mib.names import MIB_MODELS
from graphprune.mib.submission import (
    Submission,
    check_submission,
    read_submission,
    write_submission,
)
from graphprune.util.attributes import suggest_names

__all__ = [
    "FORMATS",
    "MIB_MODELS",
    "MIBNodes",
    "Submission",
    "attribution_graph",
    "check_submission",
    "draw",
    "export",
    "field_graph",
    "from_hub",
    "from_mib_json",
    "from_mib_nodes",
    "from_mib_pt",
    "load",
    "plot",
    "plot_circuits",
    "prompt_answers",
    "push_to_hub",
    "read_submission",
    "to_attribution_graph",
    "to_explanation",
    "to_html",
    "to_mib_json",
    "to_mib_pt",
    "write_submission",
]

suggest_names(__name__)
