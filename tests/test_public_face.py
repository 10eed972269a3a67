"""Tests see the library as users do: what they import is public, and nothing private is touched.

Public is what ``graphprune`` and its documented packages name in ``__all__``, and what README.md
and CONTRIBUTING.md import. Tests of an inner part stand in ``tests/inside``, one file for each.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from torch import nn

import graphprune as gp

TESTS = Path(__file__).parent
ROOT = TESTS.parent
OPEN = {"attacks", "inside", "benchmarks"}
PACKAGES = frozenset(
    f"graphprune.{name}"
    for name in (
        "adapters", "adapters.gnn", "adapters.lm", "adapters.rasp", "capabilities", "cli",
        "cli.app",
        "comparison", "conformance", "errors", "evaluation", "export", "methods", "optimise",
        "precision", "spectral", "statistics", "study", "tasks",
    )
)  # fmt: skip


@cache
def names_of(package: str) -> frozenset[str]:
    if package == "graphprune":
        return frozenset(dir(gp))
    path = ROOT.joinpath(*package.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


@cache
def documented() -> frozenset[str]:
    """``module.name`` of every import and every ``gp.name`` on the pages for users and authors."""
    found = set()
    for page in ("README.md", "CONTRIBUTING.md"):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
        for node in ast.walk(ast.parse("\n".join(blocks))):
            if isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{name.name}" for name in node.names}
            elif isinstance(node, ast.Attribute) and dotted(node.value) == "gp":
                found.add(f"graphprune.{node.attr}")
    return frozenset(found)


def is_public(module: str, name: str) -> bool:
    if f"{module}.{name}" in documented() or f"{module}.{name}" in PACKAGES:
        return True
    return (module == "graphprune" or module in PACKAGES) and name in names_of(module)


@cache
def private_names() -> frozenset[str]:
    """Every name with a leading underscore that the library gives to something of its own."""
    found = set()
    folders = ("graphprune", "adapters", "spectral")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    own = {name for name in found if re.match("_[a-zA-Z]", name)}
    return frozenset(own - vars(nn.Module()).keys())  # the hooks of torch's modules are torch's


def faults(source: str) -> list[tuple[int, str]]:
    """Line and name of each look inside."""
    tree = ast.parse(source)
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    own |= {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and is_self(n.value)
    }
    private = private_names() - own
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "graphprune":
            inner = [x.name for x in node.names if not is_public(node.module or "", x.name)]
            found += [(node.lineno, f"{node.module}.{name}") for name in inner]
        elif isinstance(node, ast.Import):
            inner = [x.name for x in node.names if x.name.startswith("graphprune.")]
            found += [(node.lineno, name) for name in inner if name not in PACKAGES]
        elif isinstance(node, ast.Attribute) and not is_self(node.value):
            owner = dotted(node.value)
            module = f"graphprune{owner[2:]}" if owner.split(".")[0] == "gp" else owner
            inside = module == "graphprune" or module in PACKAGES
            public = node.attr.startswith("__") or is_public(module, node.attr)
            if node.attr in private or (inside and not public):
                found.append((node.lineno, f"{module}.{node.attr}"))
        elif isinstance(node, ast.Call) and "attr" in dotted(node.func):
            for text in (x.value for x in node.args[:2] if isinstance(x, ast.Constant)):
                if isinstance(text, str) and (text.startswith("graphprune.") or text in private):
                    found.append((node.lineno, text))
    return found


def dotted(node: ast.expr) -> str:
    """``a.b`` of such an expression; of other expressions the last names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_self(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        node = node.func
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "super")


def test_tests_look_from_outside():
    found = []
    for path in sorted(TESTS.rglob("*.py")):
        name = path.relative_to(TESTS).as_posix()
        if name.split("/")[0] not in OPEN:
            source = path.read_text("utf-8")
            found += [f"tests/{name}:{line}: {what}" for line, what in sorted(faults(source))]
    assert not found, "\n".join(["use the public face, or move the test to tests/inside:", *found])


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("from graphprune.core.metrics import kendall_tau", "graphprune.core.metrics.kendall_tau"),
        ("from graphprune import metrics", "graphprune.metrics"),
        ("import graphprune.util.files", "graphprune.util.files"),
        ("import graphprune as gp\ngp.metrics.METRICS", "graphprune.metrics"),
        ("from graphprune.tasks import years", "graphprune.tasks.years"),
        ("model._checked", "model._checked"),
        ("monkeypatch.setattr('graphprune.util.files.os', None)", "graphprune.util.files.os"),
        ("monkeypatch.setattr(files, '_exchange', None)", "_exchange"),
        ("import graphprune as gp\nfrom graphprune.tasks import graphs, nodes\ngp.EAP()", None),
        ("from graphprune.core.model import each_mask\nfrom graphprune import tasks", None),
        ("module._forward_hooks", None),
    ],
)
def test_what_counts_as_a_look_inside(source, what, monkeypatch):
    monkeypatch.setitem(globals(), "private_names", lambda: frozenset({"_checked", "_exchange"}))
    assert [name for _, name in faults(source)] == ([] if what is None else [what])


@pytest.mark.parametrize(
    ("package", "wrong", "right"),
    [
        (gp, "EAPG", "EAPIG"),
        (gp, "evalute", "evaluate"),
        (gp.tasks, "node", "nodes"),
        (gp.adapters, "tracer", "tracr"),
        (gp.spectral, "SpectralPrunning", "SpectralPruning"),
        (gp.comparison, "compare_circuit", "compare_circuits"),
        (gp.conformance, "check_adaptor", "check_adapter"),
        (gp.evaluation, "evaluate_al", "evaluate_all"),
        (gp.export, "to_htm", "to_html"),
        (gp.methods, "EAPIGG", "EAPIG"),
        (gp.statistics, "control", "controls"),
        (gp.study, "Studdy", "Study"),
    ],
)
def test_a_missing_name_is_answered_with_the_nearest(package, wrong, right):
    with pytest.raises(AttributeError, match=f"no attribute '{wrong}'; did you mean '{right}'\\?"):
        getattr(package, wrong)
    assert getattr(package, right) is not None
    assert not hasattr(package, "__wrapped__")
