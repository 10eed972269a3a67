"""What commands write: circuit folders, files beside them, reports as documents and as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import InputError, unknown_name
from graphprune.study.settings import known_name, same_name
from graphprune.util.files import contents, states_format

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.core.circuit import Circuit
    from graphprune.evaluation import EvaluationReport, FaithfulnessCurve

__all__ = [
    "CIRCUIT_FILES",
    "FILE_OF",
    "MIB_SUFFIXES",
    "curve_document",
    "export_target",
    "formats",
    "report_document",
    "require_absent",
    "require_curve_file",
    "require_free",
    "show_curve",
    "show_report",
    "write_export",
]

CIRCUIT_FILES = ("circuit.json", "tensors.safetensors")

FILE_OF = {
    "graphml": "circuit.graphml",
    "gexf": "circuit.gexf",
    "node-link": "circuit.node-link.json",
    "cytoscape": "circuit.cyjs",
    "dot": "circuit.dot",
    "mib": "circuit.mib.json",
    "mib-json": "circuit.mib.json",
    "mib-pt": "circuit.pt",
    "csv": "circuit.csv",
    "html": "circuit.html",
    "figure": "circuit.svg",
    "svg": "circuit.svg",
    "png": "circuit.png",
    "pdf": "circuit.pdf",
}
"""The file that a format's name stands for."""


def require_free(folder: Path, *, overwrite: bool, ours: Sequence[str] = ()) -> None:
    """Raises unless ``folder`` is new or empty, or holds a circuit and may be overwritten.

    ``ours`` are names of files; a circuit's folder with no other file may always be overwritten.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"expected a folder to write to, but {folder} is a file")
    names = {path.name for path in contents(folder)}
    if not names:
        return
    if not _is_circuit(folder):
        raise InputError(
            f"the folder {folder} exists and holds no graphprune circuit; nothing was touched, "
            "name another"
        )
    if not overwrite and not names <= set(ours):
        raise InputError(
            f"the folder {folder} exists and is not empty; name another, or say --overwrite to "
            "replace the circuit in it"
        )


def _is_circuit(folder: Path) -> bool:
    return states_format(folder / CIRCUIT_FILES[0], "graphprune-circuit")


def export_target(wish: str, folder: Path) -> Path:
    """The file that ``--to``/``--export`` names: a format's own name in ``folder``, or a path."""
    path, name = Path(wish).expanduser(), same_name(wish, FILE_OF)
    if name is None and not path.suffix:
        raise unknown_name("format", wish, FILE_OF, "a file, whose suffix says its format")
    return path if name is None else folder / FILE_OF[name]


MIB_SUFFIXES = (".mib.json", ".pt")


def write_export(circuit: Circuit, path: Path, d_model: int | None = None) -> Path:
    """Exports by the suffix of ``path``, never over a circuit's own two files.

    ``d_model`` goes to the formats that name it.
    """
    from graphprune.export import export

    if path.name in CIRCUIT_FILES and _is_circuit(path.parent):
        raise InputError(f"{path} belongs to the circuit itself; choose another file name")
    mib = path.name.lower().endswith(MIB_SUFFIXES)
    return export(circuit, path, d_model=d_model if mib else None)


def require_absent(targets: Sequence[Path], overwrite: bool) -> None:
    """Raises if a file to be written exists already, or is named twice."""
    if len(set(targets)) < len(targets):
        raise InputError("two exports would be written to the same file; name each once")
    there = [str(path) for path in targets if path.exists()]
    if there and not overwrite:
        raise InputError(f"{', '.join(there)} exists; name another file, or say --overwrite")


def require_curve_file(path: Path) -> None:
    """Raises unless ``path`` can be a new figure."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot expects a .png, .svg or .pdf file, got {path}")
    if path.exists():
        raise InputError(f"{path} exists; name another file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"the folder {path.absolute().parent} is not there")


def formats(text: str) -> list[str]:
    """``"graphml,html"`` as names of files."""
    wishes = [part for part in text.split(",") if part.strip()]
    return list(dict.fromkeys(FILE_OF[known_name("export", wish, FILE_OF)] for wish in wishes))


NAMES = {
    "faithfulness": "faithfulness",
    "kl": "KL to the full model",
    "logit_diff": "logit difference",
    "prob_diff": "probability difference",
    "accuracy": "accuracy vs distractor",
    "exact_match": "match vs distractor",
    "top1_accuracy": "top-1 accuracy",
    "top1_match": "top-1 match",
    "kendall_tau": "Kendall's tau",
}
MEANINGS = {
    "vs distractor": "the answer against the distractor alone",
    "top-1": "the largest of all outputs",
    "match": "the full model's choice",
}
NONE = (None, None)
COUNTS = ("n_edges", "density", "sparsity")


def report_document(report: EvaluationReport, seed: int = 0) -> dict[str, Any]:
    """The report's plain values and ``intervals`` (over prompts, 95 %; ``None``: no bound)."""
    intervals = {
        name: [end if math.isfinite(end) else None for end in ends]
        for name, ends in report.intervals(seed=seed).items()
    }
    return {**report.to_dict(), "intervals": intervals}


def show_report(console: Console, document: dict[str, Any], title: str) -> None:
    """A row for each measure: the circuit with its interval, the full and the ablated model."""
    from graphprune.cli.command import table

    full, ablated = document.get("full", {}), document.get("ablated", {})
    intervals = document.get("intervals", {})
    skipped = {*COUNTS, "full", "ablated", "absent", "notes", "settings", "intervals", "remarks"}
    if document.get("settings", {}).get("choices") == "all outputs":
        skipped |= {"accuracy", "exact_match"}  # the same numbers as those of top 1
    names = [n for n in NAMES if n in document and n not in skipped]
    names += [n for n in document if n not in NAMES and n not in skipped]
    rows = []
    for name in names:
        low, high = intervals.get(name, (None, None))
        interval = f"{_end(low, '-inf')} to {_end(high, 'inf')}" if (low, high) != NONE else ""
        ends = ("1", "0") if name == "faithfulness" else (full.get(name), ablated.get(name))
        rows.append((NAMES.get(name, name), _number(document[name]), interval, *map(_number, ends)))
    table(
        console,
        title,
        ["", "circuit", "95 % interval", "full model", "all ablated"],
        rows,
        numbers=True,
    )
    labels = " ".join(row[0] for row in rows)
    explained = [f"{words}: {meaning}" for words, meaning in MEANINGS.items() if words in labels]
    if explained:
        console.print("; ".join(explained))
    why = document.get("absent", {}).get("faithfulness")
    if why:  # the one measure that a reader looks for
        console.print(f"no faithfulness: {why}")
    for name, note in document.get("notes", {}).items():
        console.print(f"{NAMES.get(name, name)}: {note}")
    for remark in document.get("remarks", ()):
        console.print(remark)


def _end(value: float | None, unbounded: str) -> str:
    return unbounded if value is None else f"{value:.3f}"


def _number(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.3f}" if abs(value) < 1e5 else f"{value:.4g}"


def curve_document(curve: FaithfulnessCurve) -> dict[str, Any]:
    """Sizes, kept edges and f for each ranking, with the areas."""
    return {
        "sizes": list(curve.sizes),
        "faithfulness": curve.f,
        "kept": curve.kept,
        "metric": curve.metric,
        "full": curve.full,
        "ablated": curve.ablated,
        "note": curve.note,
        **curve.summary(),
    }


def show_curve(console: Console, curve: FaithfulnessCurve, title: str) -> None:
    """A row for each size, two columns for each ranking, and the areas below."""
    from graphprune.cli.command import table

    columns = ["size"]
    for ranking in curve.f:
        columns += [f"edges ({ranking})", f"f ({ranking})"]
    rows: list[Sequence[str]] = []
    for i, size in enumerate(curve.sizes):
        row = [f"{size:g}"]
        for ranking in curve.f:
            row += [f"{curve.kept[ranking][i]}", f"{curve.f[ranking][i]:.3f}"]
        rows.append(row)
    table(console, title, columns, rows, numbers=True)
    areas = "  ".join(f"{name} {value:.3f}" for name, value in curve.summary().items())
    console.print(areas)
    if curve.note:
        console.print(f"f: {curve.note}")
