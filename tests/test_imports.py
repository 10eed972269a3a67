"""No module imports itself by way of others, counting imports in functions and those for types.

The files are read, never run, so that nothing of what they do when imported plays a part.
`pyproject.toml` lists doors that open upwards (methods of a value that call the room which does
the work); import-linter leaves them out, and so does this.
"""

import ast
import tomllib
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "graphprune": "graphprune",
    "adapters": "graphprune.adapters",
    "spectral": "graphprune.spectral",
}


def sources() -> dict[str, Path]:
    """Our modules by their import names; the links inside `graphprune/` are not followed."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "graphprune" and inside[0] in FOLDERS:
                continue
            parts = [package, *(part for part in inside if part != "__init__")]
            found[".".join(parts)] = path
    return found


def imported(name: str, path: Path, known: set[str]) -> set[str]:
    """Modules of ours that a file names in any `import`, wherever it stands.

    `from package import thing` means the module `package.thing` where there is one, else the
    package itself.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*home, *filter(None, [node.module])]) if node.level else node.module
            whole = {f"{base}.{alias.name}" for alias in node.names}
            found |= {one if one in known else base for one in whole}
    return (found & known) - {name}


def module_graph() -> nx.DiGraph:
    known = sources()
    graph = nx.DiGraph()
    graph.add_nodes_from(known)
    for name, path in known.items():
        graph.add_edges_from((name, other) for other in imported(name, path, set(known)))
    return graph


def doors() -> set[tuple[str, str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    pairs = (door.split(" -> ") for door in layers["ignore_imports"])
    return {(inner, outer) for inner, outer in pairs}


def test_no_modules_import_each_other():
    graph = module_graph()
    graph.remove_edges_from(doors())
    circles = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    shown = [
        f"{one} -> {other}"
        for circle in circles
        for one, other in sorted(graph.subgraph(circle).edges)
    ]
    assert not shown, "imports that stand on a circle:\n" + "\n".join(shown)


def test_every_listed_door_is_one():
    graph = module_graph()
    gone = sorted(door for door in doors() if not graph.has_edge(*door))
    assert not gone, f"pyproject.toml lists imports that are not there: {gone}"


def test_imports_are_found_wherever_they_stand(tmp_path):
    path = tmp_path / "middle.py"
    path.write_text(
        "import os\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from graphprune.core.task import Task\n"
        "def f():\n"
        "    from ..util import files\n"
        "    from . import near\n"
        "    from .near import thing\n"
        "    import graphprune.errors\n"
    )
    known = {
        "graphprune.core.task",
        "graphprune.util",
        "graphprune.util.files",
        "graphprune.errors",
        "graphprune.export.near",
        "graphprune.export",
        "graphprune.export.middle",
    }
    assert imported("graphprune.export.middle", path, known) == {
        "graphprune.core.task",
        "graphprune.util.files",
        "graphprune.errors",
        "graphprune.export.near",
    }
