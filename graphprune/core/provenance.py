"""Where a result comes from, as plain values: method, ablation, versions."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from graphprune.core.method import Method
from graphprune.core.model import Ablation
from graphprune.core.scores import EdgeScores
from graphprune.util.plain import plain

__all__ = ["Documented", "ablation_name", "method_record", "versions"]

_PACKAGES = ("graphprune", "numpy", "torch", "transformers", "torch_geometric")


@runtime_checkable
class Documented(Protocol):
    """Whatever can be written as plain values, such as an :class:`~graphprune.EvaluationReport`."""

    def to_dict(self) -> Mapping[str, Any]:
        """Its figures by name."""
        ...


def method_record(method: Any, scores: EdgeScores | None) -> dict[str, Any] | None:
    """A method's name and settings as plain values; ``None`` where neither it nor scores say."""
    if method is None:
        return {"name": scores.method} if scores is not None and scores.method else None
    if isinstance(method, str):
        return {"name": method}
    if isinstance(method, Mapping):
        return dict(plain(method))
    if isinstance(method, Method):  # what was used, said or not
        method = method.resolved()
    settings = plain(method) if dataclasses.is_dataclass(method) else {}
    fields = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    hidden = {"type", *(f.name for f in fields if not f.compare)}
    settings = {k: v for k, v in settings.items() if k not in hidden}
    return {"name": type(method).__name__, "settings": settings}


def ablation_name(given: Any, method: Any = None, report: Any = None) -> str | None:
    """The ablation that was said: outright, by a method (or a record of one), or by a report."""
    if given is None and method is not None:
        given = method.chosen_ablation if isinstance(method, Method) else _setting(method)
    if given is None:
        given = _setting(report.to_dict() if isinstance(report, Documented) else report)
    name = given.name if isinstance(given, Ablation) else given
    return name if isinstance(name, str) else None


def _setting(record: Any) -> Any:
    """The ablation among the settings of a method's or a report's record."""
    settings = record.get("settings") if isinstance(record, Mapping) else None
    return settings.get("ablation") if isinstance(settings, Mapping) else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that may have had a part in a result."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        # What is not imported had no part in the result.
        if package in sys.modules:
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = "uninstalled checkout"
    return found
