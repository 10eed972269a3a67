"""The card of a circuit on a hub: what it is, how good it is, how to load it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from graphprune.util.plain import recorded

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit

CARD_NAME = "README.md"
PICTURE_NAME = "circuit.png"

_FIGURES = {
    "faithfulness": "faithfulness",
    "kl": "KL to the whole model, nats",
    "logit_diff": "logit difference",
    "accuracy": "accuracy",
    "exact_match": "answer as the whole model's",
    "top1_match": "top token as the whole model's",
}


def card(circuit: Circuit, repo_id: str, *, picture: bool) -> str:
    """The card's Markdown, with the hub's metadata in front.

    Whatever comes from files or users is escaped: a title cannot add a heading, a link or markup.

    Args:
        circuit: what the card is of.
        repo_id: where it will stand, for the line that loads it.
        picture: whether ``circuit.png`` stands beside it.
    """
    graph, mask = circuit.graph, circuit.mask
    share = mask.num_kept / graph.num_edges if graph.num_edges else 0.0
    parts = [
        "---\n" + "".join(f"{line}\n" for line in _metadata(circuit)) + "---",
        f"# {_plain(circuit.title)}",
        f"A circuit of {mask.num_kept:,} of {graph.num_edges:,} edges ({share:.2%}) and "
        f"{len(circuit.nodes()):,} nodes, found with "
        "[graphprune](https://pypi.org/project/graphprune/).",
    ]
    if picture:
        parts.append(f"![The circuit]({PICTURE_NAME})")
    parts.append(
        "```python\nimport graphprune as gp\n\n"
        f"circuit = gp.load({json.dumps(repo_id)})\ncircuit.edges()\n```"
    )
    rows = _figures(circuit.report_dict())
    if rows:
        parts += ["## What it is worth", _table(("measure", "value", "95 % interval"), rows)]
    parts += ["## How it was found", _table(("", ""), _origin(circuit))]
    return "\n\n".join(parts) + "\n"


def _metadata(circuit: Circuit) -> list[str]:
    lines = ["library_name: graphprune", "tags:", "- graphprune", "- circuit", "- interpretability"]
    name = recorded(circuit.provenance, "model", "model")
    # Only what looks like a hub id: the hub refuses a card whose base model cannot be one.
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        lines.append(f"base_model: {name}")
    return lines


def _figures(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    intervals = report.get("intervals")
    rows = []
    for key, label in _FIGURES.items():
        value = report.get(key)
        if not isinstance(value, int | float):
            continue
        ends = intervals.get(key) if isinstance(intervals, dict) else None
        known = isinstance(ends, list | tuple) and len(ends) == 2 and None not in ends
        shown = " to ".join(f"{end:.3g}" for end in ends) if known and ends is not None else ""
        rows.append((label, f"{value:.3g}", shown))
    return rows


def _origin(circuit: Circuit) -> list[tuple[str, str]]:
    origin = circuit.provenance
    rows = []
    for key in ("model", "task", "method", "seed", "created", "versions"):
        if key in origin:
            value = origin[key]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((key, _plain(text)))
    rows.insert(0, ("ablation", _plain(circuit.ablation or "not known")))
    return rows


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown and HTML show as it is: one line, its special characters escaped."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&:])", lambda m: f"&#{ord(m[1])};", line)
