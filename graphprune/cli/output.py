"""Circuit folders and the files beside them, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import InputError, unknown_name
from graphprune.files import contents

if TYPE_CHECKING:
    from graphprune.circuit import Circuit

__all__ = [
    "CIRCUIT_FILES",
    "FILE_OF",
    "MIB_SUFFIXES",
    "export_target",
    "formats",
    "require_absent",
    "require_curve_file",
    "require_free",
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
    try:
        found = json.loads((folder / CIRCUIT_FILES[0]).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == "graphprune-circuit"


def export_target(wish: str, folder: Path) -> Path:
    """The file that ``--to``/``--export`` names: a format's own name in ``folder``, or a path."""
    if wish in FILE_OF:
        return folder / FILE_OF[wish]
    path = Path(wish).expanduser()
    if not path.suffix:
        raise InputError(
            f"{wish!r} is no format and no file name; formats: {', '.join(FILE_OF)}; a file's "
            "suffix says its format"
        )
    return path


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
    wishes = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [wish for wish in wishes if wish not in FILE_OF]
    if unknown:
        raise unknown_name("export", unknown[0], FILE_OF)
    return list(dict.fromkeys(FILE_OF[wish] for wish in wishes))
