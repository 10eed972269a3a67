"""What a study asks for, from YAML or Python, checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from graphprune.core.method import Scorer, Sweep
from graphprune.core.registry import make_method, method_class, method_names
from graphprune.errors import InputError, MissingExtraError, unknown_name
from graphprune.tasks import TASKS
from graphprune.util.checks import at_least
from graphprune.util.plain import plain

from .case_contents import CaseSource

__all__ = ["StudyMethod", "StudySystem", "read_yaml"]


@dataclass(frozen=True)
class StudySystem:
    """A system: its name in tables, its kind (an entry point), its tasks and the kind's options.

    Tasks and options may name files and folders, from ``folder`` on (``""``: as they are).
    ``train`` and ``test`` are numbers of examples in place of the study's, one for all tasks or by
    task (the study's for tasks that are not named).

    Example:
        >>> system = StudySystem(
        ...     "small", "language", ("ioi",), {"model": "smollm2"}, train={"ioi": 32}
        ... )
        >>> system.train_on("ioi", 64)
        32
    """

    name: str
    kind: str
    tasks: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    train: int | Mapping[str, int] | None = None
    test: int | Mapping[str, int] | None = None
    folder: str = ""

    def __post_init__(self) -> None:
        for what in ("train", "test"):
            asked, of = getattr(self, what), f"{what} of system {self.name!r}"
            if isinstance(asked, Mapping):
                unknown = sorted(set(asked) - set(self.tasks))
                if unknown:
                    raise InputError(f"{of} names a task that it lacks: {unknown[0]!r}")
                for task, count in asked.items():
                    at_least(count, 1, f"{of} on {task!r}")
            elif asked is not None:
                at_least(asked, 1, of)

    def source(self, task: str, train: int, test: int, seed: int) -> CaseSource:
        """What makes the case of a task; texts that name files are absolute in it.

        Raises :class:`InputError` for a file that only the current folder has.
        """
        bare = self.kind == "language"  # others' names may be those of any folder
        options = {
            name: self._placed(value, bare and name == "model")
            for name, value in self.options.items()
        }
        told = json.dumps(plain(options), sort_keys=True)
        known = bare and task.replace("-", "_") in TASKS
        where = task if known else str(self._placed(task, bare))
        return CaseSource(self.kind, where, train, test, seed, told)

    def _placed(self, text: Any, bare: bool) -> Any:
        """The absolute name of a file or folder, anything else as it is.

        ``bare``: whether a word alone may be the name of one.
        """
        if not isinstance(text, str) or not text or not self.folder:
            return text
        path, place = Path(text).expanduser(), Path(self.folder)
        if path.is_absolute():
            return str(path)
        here = place / path
        if text.startswith(".") or path.suffix.lower() in (".jsonl", ".csv"):
            return str(here.resolve())
        if not bare and len(path.parts) == 1:
            return text
        if here.exists():
            return str(here.resolve())
        if path.exists():
            raise InputError(
                f"system {self.name!r}: {text} is not in {place}, where the study looks for files; "
                "there is one in the current folder: name it from there, or by its whole path"
            )
        return text

    def train_on(self, task: str, default: int) -> int:
        """Examples to find circuits on; ``default`` is the study's."""
        return _count(self.train, task, default)

    def test_on(self, task: str, default: int) -> int:
        """Examples to judge circuits on; ``default`` is the study's."""
        return _count(self.test, task, default)


def _count(asked: int | Mapping[str, int] | None, task: str, default: int) -> int:
    found = asked.get(task) if isinstance(asked, Mapping) else asked
    return default if found is None else found


@dataclass(frozen=True)
class StudyMethod:
    """A method: its name in tables, its registered name and settings.

    Args:
        name: in tables.
        method: as in ``graphprune.method_names()``.
        settings: the method's own. A mapping with ``method`` among them, or a list of such, is a
            method itself: ``{"method": "parallel-ensemble", "scorers": [{"method": "eap"}]}``.
        taus: thresholds of a method that has ``tau``: an edge is ranked by the largest at which it
            stays.
        max_edges: the method is left out on larger graphs.
        systems: names of the systems it runs on; ``None``: all.

    Example:
        >>> StudyMethod("EAP-IG, 3", "eap-ig", {"steps": 3}).build(seed=0).label
        'EAPIG(steps=3)'
    """

    name: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    taus: tuple[float, ...] = ()
    max_edges: int | None = None
    systems: tuple[str, ...] | None = None

    def build(self, seed: int) -> Any:
        """The method, with ``seed`` where it has one; raises :class:`InputError`."""
        return _built({"method": self.method, **self.settings}, seed)


def _built(value: Any, seed: int) -> Any:
    if isinstance(value, Mapping) and "method" in value:
        settings = {k: _built(v, seed) for k, v in value.items() if k != "method"}
        kind = method_class(str(value["method"]))
        if any(entry.name == "seed" for entry in fields(kind)):
            settings.setdefault("seed", seed)
        return make_method(str(value["method"]), **settings)
    if isinstance(value, list | tuple):
        return [_built(item, seed) for item in value]
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file's mapping, by ``yaml.safe_load``."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError('studies need PyYAML: pip install "graphprune[study]"') from error
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the study {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a mapping (name, systems, methods, ...)")
    return found


def systems_from(found: Any, folder: str) -> tuple[StudySystem, ...]:
    """Systems from ``{name: {kind: ..., tasks: [...], option: value}}``, files in ``folder``."""
    rows = []
    for name, row in _named(found, "systems").items():
        entry = dict(row)
        kind = entry.pop("kind", "language")
        tasks = entry.pop("tasks", None)
        if not isinstance(tasks, list) or not tasks:
            raise InputError(f"system {name!r} needs tasks, a list of names, got {tasks!r}")
        train, test = entry.pop("train", None), entry.pop("test", None)
        names = tuple(str(task) for task in tasks)
        rows.append(StudySystem(name, str(kind), names, entry, train, test, folder))
    return tuple(rows)


def methods_from(found: Any, systems: Sequence[StudySystem]) -> tuple[StudyMethod, ...]:
    """Methods from ``{name: {method: ..., setting: value}}``; each is built once to be checked."""
    rows = []
    names = {system.name for system in systems}
    for name, row in _named(found, "methods").items():
        entry = dict(row)
        method = entry.pop("method", name)
        if method not in method_names():
            raise unknown_name("method", method, method_names(), where=f"method {name!r}")
        taus = entry.pop("taus", ())
        limit = entry.pop("max_edges", None)
        only = entry.pop("systems", None)
        if only is not None and not set(only) <= names:
            unknown = ", ".join(sorted(set(only) - names))
            raise InputError(f"method {name!r} names systems that the study lacks: {unknown}")
        made = StudyMethod(
            name, method, entry, tuple(map(float, taus)), limit, None if only is None else (*only,)
        )
        built = made.build(0)
        if taus and not isinstance(built, Sweep):
            raise InputError(f"method {name!r} has no thresholds; leave taus out")
        if not taus and not isinstance(built, Scorer):
            raise InputError(f"method {name!r} gives no scores; name the taus to sweep")
        rows.append(made)
    return tuple(rows)


def _named(found: Any, what: str) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"a study needs {what}: a mapping from names to settings")
    rows: dict[str, Mapping[str, Any]] = {}
    for name, row in found.items():
        row = {} if row is None else row
        if not isinstance(row, Mapping):
            raise InputError(f"{what}: {name!r} must be a mapping, got {row!r}")
        rows[str(name)] = row
    return rows
