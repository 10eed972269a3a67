"""What a study asks for, read from plain values, and checked before anything runs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphprune.core.contents import file_fingerprint
from graphprune.core.method import Scorer, Sweep
from graphprune.errors import InputError, unknown_name
from graphprune.tasks import TASKS
from graphprune.util.checks import at_least, is_usable
from graphprune.util.plain import plain

from .by_name import PROMPT_FILES
from .case_contents import CaseSource
from .cases import SystemOptions, system_names, system_options
from .language import require_known_task
from .mistakes import MistakeCollector, Place
from .settings import (
    built,
    hints_of,
    known_ablation,
    method_kind,
    require_type,
    settings_of,
    unknown_setting,
)

__all__ = ["StudyMethod", "StudySystem", "methods_from", "systems_from"]


@dataclass(frozen=True)
class StudySystem:
    """A system: its name in tables, its kind (an entry point), its tasks and the kind's options.

    Tasks and options may name files and folders, from ``folder`` on (``""``: as they are).
    ``train`` and ``test`` are numbers of examples in place of the study's, one for all tasks or by
    task (the study's for tasks that are not named). ``task_options`` are further options by task.

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
    task_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def check(self, mistakes: MistakeCollector) -> None:
        """Notes what is wrong with its kind, options, tasks and numbers; nothing is loaded."""
        here = ("systems", self.name)
        for part in ("train", "test"):
            self._check_counts(part, (*here, part), mistakes)
        if len(set(self.tasks)) < len(self.tasks):
            mistakes.add((*here, "tasks"), "names a task twice; give one of them another name")
        if self.kind not in system_names():
            error = unknown_name("kind", self.kind, system_names())
            mistakes.add((*here, "kind"), str(error))
            return
        known = system_options(self.kind)
        self._check_options(self.options, known, here, mistakes)
        for number, task in enumerate(self.tasks):
            own, place = self.task_options.get(task, {}), (*here, "tasks", number)
            self._check_options(own, known, place, mistakes)
            options = {**self.options, **own}
            lacking = [name for name in known.required if name not in options]
            if lacking and number == 0:
                mistakes.add(here, f"needs {', '.join(lacking)}; see {_INFO.format(self.kind)}")
            if self.kind == "language":
                with mistakes.at(*place):
                    require_known_task(self._placed_task(task), options)

    def _check_counts(self, part: str, place: Place, mistakes: MistakeCollector) -> None:
        requested, name = getattr(self, part), f"{part} of system {self.name!r}"
        if not isinstance(requested, Mapping):
            requested = {} if requested is None else {None: requested}
        for task, count in requested.items():
            with mistakes.at(*place):
                if task is not None and task not in self.tasks:
                    raise InputError(f"{name} names a task that it lacks: {task!r}")
                at_least(count, 1, name if task is None else f"{name} on {task!r}")

    def _check_options(
        self,
        options: Mapping[str, Any],
        known: SystemOptions,
        place: Place,
        mistakes: MistakeCollector,
    ) -> None:
        """Notes options of a wrong type, and those that the kind lacks."""
        for name, value in options.items():
            with mistakes.at(*place, name):
                if name in known.types:
                    require_type(value, known.types[name])
                elif not known.others:
                    names = dict.fromkeys(known.types, "")
                    raise unknown_setting(f"a system of kind {self.kind!r}", [name], names)

    def source(self, task: str, train: int, test: int, seed: int) -> CaseSource:
        """What makes the case of a task; texts that name files are absolute in it.

        Raises :class:`InputError` for a file that only the current folder has.
        """
        bare = self.kind == "language"  # others' names may be those of any folder
        options = {
            name: self._placed(value, bare and name == "model")
            for name, value in {**self.options, **self.task_options.get(task, {})}.items()
        }
        as_json = json.dumps(plain(options), sort_keys=True)
        return CaseSource(self.kind, self._placed_task(task), train, test, seed, as_json)

    def _placed_task(self, task: str) -> str:
        bare = self.kind == "language"
        known = bare and task.replace("-", "_") in TASKS
        own_files = "train_file" in {**self.options, **self.task_options.get(task, {})}
        return task if known or own_files else str(self._placed(task, bare))

    def _placed(self, text: Any, bare: bool) -> Any:
        """The absolute name of a file or folder, anything else as it is.

        ``bare``: whether a word alone may be the name of one.
        """
        if not isinstance(text, str) or not text or not self.folder or not is_usable(text):
            return text
        path, place = Path(text).expanduser(), Path(self.folder)
        if path.is_absolute():
            return str(path)
        here = place / path
        if text.startswith(".") or path.suffix.lower() in PROMPT_FILES:
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


_INFO = "'graphprune info --system {}'"


def _count(requested: int | Mapping[str, int] | None, task: str, default: int) -> int:
    count = requested.get(task) if isinstance(requested, Mapping) else requested
    return default if count is None else count


@dataclass(frozen=True)
class StudyMethod:
    """A method: its name in tables, its registered name and settings.

    Args:
        name: in tables.
        method: as in ``graphprune.method_names()``, or an import path such as
            ``my_package.module:MyMethod``, which imports (and so runs) that module.
        settings: the method's own. A mapping with ``method`` among them, or a list of such, is a
            method itself: ``{"method": "parallel-ensemble", "scorers": [{"method": "eap"}]}``.
        taus: thresholds of a method that has ``tau``: an edge is ranked by the largest at which it
            stays.
        max_edges: the method is left out on larger graphs.
        systems, tasks: names of those it runs on; ``None``: all.
        seeds: those of the study's that it runs at; ``None``: all.

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
    tasks: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    def runs_on(self, system: str, task: str, seed: int) -> bool:
        """Whether it is asked for there."""
        asked = ((self.systems, system), (self.tasks, task), (self.seeds, seed))
        return all(only is None or value in only for only, value in asked)

    @property
    def _described(self) -> dict[str, Any]:
        return {"method": self.method, **self.settings}

    def build(self, seed: int) -> Any:
        """The method, with ``seed`` where it has one; raises :class:`InputError`."""
        return _built(self._described, seed)

    @property
    def code(self) -> str:
        """Fingerprints of the files that import paths name, itself and inside; ``""``: none do."""
        names = [str(described["method"]) for _, described in _methods_in(self._described, ())]
        files = [inspect.getfile(method_kind(name)) for name in names if ":" in name]
        return "".join(map(file_fingerprint, files))

    def check(
        self, systems: Sequence[StudySystem], seeds: Sequence[int], mistakes: MistakeCollector
    ) -> None:
        """Notes what is wrong with its name, settings and thresholds; it is built once.

        ``systems`` and ``seeds`` are the study's.
        """
        here: Place = ("methods", self.name)
        before = len(mistakes.mistakes)
        for place, described in _methods_in(self._described, here):
            with mistakes.at(*place):
                _check_settings(described, place, mistakes)
        self._check_places(systems, seeds, mistakes)
        if self.max_edges is not None:
            with mistakes.at(*here, "max_edges"):
                at_least(self.max_edges, 1, "max_edges")
        if len(mistakes.mistakes) > before:
            return
        with mistakes.at(*here):
            method = self.build(0)
            if self.taus and not isinstance(method, Sweep):
                raise InputError(f"method {self.name!r} has no thresholds; leave taus out")
            if not self.taus and not isinstance(method, Scorer):
                raise InputError(f"method {self.name!r} gives no scores; name the taus to sweep")

    def _check_places(
        self, systems: Sequence[StudySystem], seeds: Sequence[int], mistakes: MistakeCollector
    ) -> None:
        """Notes systems, tasks and seeds that the study does not have."""
        own_systems, own_tasks, own_seeds = self.systems or (), self.tasks or (), self.seeds or ()
        tasks = [t for s in systems if s.name in own_systems or not own_systems for t in s.tasks]
        for what, own, known in (
            ("system", own_systems, [system.name for system in systems]),
            ("task", own_tasks, list(dict.fromkeys(tasks))),
            ("seed", own_seeds, list(seeds)),
        ):
            for number, name in enumerate(own):
                if name not in known:
                    names = list(map(str, known))
                    error = unknown_name(what, str(name), names, "which the study has")
                    mistakes.add(("methods", self.name, f"{what}s", number), str(error))


def _methods_in(value: Any, place: Place) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """The described methods in a value, itself first, each with its place in the study."""
    if isinstance(value, Mapping) and "method" in value:
        yield place, value
        for name, setting in value.items():
            yield from _methods_in(setting, (*place, name))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _methods_in(item, (*place, number))


def _check_settings(described: Mapping[str, Any], place: Place, mistakes: MistakeCollector) -> None:
    """Notes settings that a described method lacks, and values of a wrong type."""
    kind = method_kind(str(described["method"]))
    known, types = settings_of(kind), hints_of(kind)
    for name, value in described.items():
        holds_methods = any(True for _ in _methods_in(value, ()))
        with mistakes.at(*place, name):
            if name == "method":
                continue
            if name not in known:
                raise unknown_setting(f"method {described['method']!r}", [name], known)
            if name == "ablation" and isinstance(value, str):
                known_ablation(value)
            if not holds_methods:
                require_type(value, types.get(name, Any))


def _built(value: Any, seed: int) -> Any:
    if isinstance(value, Mapping) and "method" in value:
        name = str(value["method"])
        kind = method_kind(name)
        settings = {k: _built(v, seed) for k, v in value.items() if k != "method"}
        if "seed" in settings_of(kind):
            settings.setdefault("seed", seed)
        return built(kind, name, settings)
    if isinstance(value, list | tuple):
        return [_built(item, seed) for item in value]
    return value


def systems_from(rows: Any, folder: str, mistakes: MistakeCollector) -> tuple[StudySystem, ...]:
    """Systems from ``{name: {kind: ..., tasks: [...], option: value}}``, files in ``folder``.

    A task is a name, or a mapping ``{task: name, option: value}`` with options of its own; with
    ``train_file`` and ``test_file`` among them the name may be left out.
    """
    systems = []
    for name, row in _named(rows, "systems", mistakes):
        options = dict(row)
        kind, tasks = options.pop("kind", "language"), options.pop("tasks", None)
        train, test = options.pop("train", None), options.pop("test", None)
        if not isinstance(tasks, list) or not tasks:
            mistakes.add(
                ("systems", name, "tasks"),
                f"system {name!r} needs tasks, a list of names such as [ioi], got {tasks!r}",
            )
            continue
        names: list[str] = []
        own_options: dict[str, Mapping[str, Any]] = {}
        for number, entry in enumerate(tasks):
            with mistakes.at("systems", name, "tasks", number):
                task, own = _task(entry)
                names.append(task)
                own_options |= {task: own} if own else {}
        systems.append(
            StudySystem(name, str(kind), (*names,), options, train, test, folder, own_options)
        )
    return tuple(systems)


def _task(entry: Any) -> tuple[str, Mapping[str, Any]]:
    """The name of a task and the options of its own."""
    if isinstance(entry, str) and entry:
        return entry, {}
    options = dict(entry) if isinstance(entry, Mapping) else {}
    train_file = options.get("train_file")
    name = options.pop("task", Path(train_file).stem if isinstance(train_file, str) else None)
    if not isinstance(name, str) or not name:
        raise InputError(
            "expected a task's name, or a mapping such as {task: ioi, corruption: swap} or "
            f"{{train_file: a.jsonl, test_file: b.jsonl}}, got {entry!r}"
        )
    return name, options


def methods_from(rows: Any, mistakes: MistakeCollector) -> tuple[StudyMethod, ...]:
    """Methods from ``{name: {method: ..., setting: value}}``."""
    methods = []
    for name, row in _named(rows, "methods", mistakes):
        settings = dict(row)
        method, max_edges = settings.pop("method", name), settings.pop("max_edges", None)
        taus, only = settings.pop("taus", []), {}
        for what, kind in (("systems", str), ("tasks", str), ("seeds", int)):
            names = settings.pop(what, None)
            with mistakes.at("methods", name, what):
                require_type(names, list[kind] | None)  # type: ignore[valid-type]
                only[what] = None if names is None else tuple(names)
        with mistakes.at("methods", name, "taus"):
            require_type(taus, list[float])
            numbers = tuple(map(float, taus))
            methods.append(StudyMethod(name, str(method), settings, numbers, max_edges, **only))
    return tuple(methods)


def _named(
    rows: Any, what: str, mistakes: MistakeCollector
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The names of a mapping with what each stands for."""
    if not isinstance(rows, Mapping) or not rows:
        message = f"a study needs {what}: a mapping from names to settings, got {rows!r}"
        mistakes.add((what,), message)
        return
    for name, row in rows.items():
        if row is None or isinstance(row, Mapping):
            yield str(name), row or {}
        else:
            mistakes.add((what, str(name)), f"expected a mapping of settings, got {row!r}")
