"""What ``graphprune info`` knows of models, tasks and circuits, as plain values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from graphprune.core.batch import Batch
    from graphprune.core.circuit import Circuit
    from graphprune.core.metrics import Metric
    from graphprune.core.model import MaskedModel
    from graphprune.core.task import Task
    from graphprune.study.by_name import Loaded

__all__ = [
    "SOLVED",
    "circuit_facts",
    "known_names",
    "model_facts",
    "performance",
    "system_facts",
    "task_facts",
    "task_facts_without_model",
    "task_warning",
]

SOLVED = 0.7


def known_names() -> dict[str, Any]:
    """Architectures, methods, tasks, kinds of systems and formats."""
    from graphprune.cli.output import FILE_OF
    from graphprune.core.ablation import ABLATIONS
    from graphprune.core.metrics import METRICS
    from graphprune.core.registry import _entries, method_names, supported
    from graphprune.study.cases import system_function, system_names
    from graphprune.tasks import TASKS
    from graphprune.util.fetch import ARTIFACTS

    entries = _entries("graphprune.methods")
    return {
        "architectures": supported(),
        "methods": {name: _summary(entries[name].load()) for name in method_names()},
        "tasks": {name: _summary(make) for name, make in TASKS.items()},
        "systems": {kind: _summary(system_function(kind)) for kind in system_names()},
        "metrics": list(METRICS),
        "ablations": list(ABLATIONS),
        "formats": list(FILE_OF),
        "fetch": list(ARTIFACTS),
    }


def _summary(thing: Callable[..., Any]) -> str:
    """The docstring's first paragraph without its markup."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "")


def model_facts(loaded: Loaded) -> dict[str, Any]:
    """Sizes of the model and of its graph."""
    from graphprune.capabilities import UserModule, identity_of, require
    from graphprune.core.registry import describe
    from graphprune.mib.layout import UngroupedLayout

    model = loaded.model
    facts = {k: v for k, v in identity_of(model).items() if k != "model"}
    module = require(model, UserModule, "a description").module
    seen = {p.data_ptr(): p.numel() for p in module.parameters()}
    facts |= {
        "name": loaded.name,
        "parameters": sum(seen.values()),
        "device": str(next(module.parameters()).device),
        "nodes": model.graph.num_nodes,
        "edges": model.graph.num_edges,
    }
    with suppress(InputError):  # no language model
        facts["family"] = str(describe(model))
    with suppress(InputError):  # no transformer of the field's shape
        facts["edges_ungrouped"] = int(UngroupedLayout.of(model.graph).real.sum())
    return {"name": facts.pop("name"), **facts}


def circuit_facts(circuit: Circuit, folder: Path) -> dict[str, Any]:
    """Edges, nodes, provenance and report of a circuit that was saved in ``folder``."""
    provenance = {k: v for k, v in circuit.provenance.items() if k != "task"}
    task = circuit.provenance.get("task")
    if isinstance(task, dict):
        notes = task.get("notes") if isinstance(task.get("notes"), dict) else {}
        short = {k: v for k, v in (notes or {}).items() if not isinstance(v, list)}
        provenance["task"] = {**task, "notes": short}
    return {
        "folder": str(folder),
        "edges": circuit.mask.num_kept,
        "graph_edges": circuit.graph.num_edges,
        "nodes": len(circuit.nodes()),
        "scored": circuit.scores is not None,
        "graph": circuit.graph.fingerprint,
        "found_on_examples": None if circuit.found_on is None else len(circuit.found_on),
        **provenance,
        "report": circuit.report_dict(),
    }


def task_facts_without_model(name: str) -> dict[str, Any]:
    """What is known of a task without a tokenizer."""
    from graphprune.study.by_name import prompt_files
    from graphprune.study.settings import known_name
    from graphprune.tasks import TASKS, read_csv, read_jsonl

    path = Path(name).expanduser()
    if prompt_files(name) == [path]:
        if not path.is_file():
            raise InputError(f"the file of prompts {path} is not there")
        records = (read_jsonl if path.suffix.lower() == ".jsonl" else read_csv)(path)
        keys = ("corrupt", "answer", "distractor", "spans")
        return {
            "name": path.stem,
            "prompts": len(records),
            "characters": _spread([len(str(r["clean"])) for r in records]),
            "with": {key: sum(key in r for r in records) for key in keys},
        }
    task = known_name("task", name, TASKS, "a .jsonl or .csv file")
    parameters = list(inspect.signature(TASKS[task]).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if not isinstance(p.default, tuple)}
    return {"name": task, "about": _summary(TASKS[task]), "settings": defaults}


def _spread(numbers: list[int]) -> dict[str, float]:
    ordered = sorted(numbers)
    return {"least": ordered[0], "median": ordered[len(ordered) // 2], "most": ordered[-1]}


def task_facts(task: Task, tokenizer: Any) -> dict[str, Any]:
    """Counts, token lengths, and one example as text."""
    every = task.examples.lengths()
    lengths = [int(every[i]) for i in (range(len(every)) if task.order is None else task.order)]
    batch = next(task.take(1).batches(1))
    notes = {k: v for k, v in task.notes.items() if not isinstance(v, (list, dict))}
    return {
        "name": task.name,
        "prompts": len(task),
        "tokens": _spread(lengths),
        "metric": task.metric.name,
        "notes": notes,
        "example": _example(batch, tokenizer),
    }


def graph_facts(path: Path) -> dict[str, Any]:
    """Components and spectrum of a directed graph, and what spectral pruning could do to it.

    ``path`` is a circuit's folder (the kept edges), or a .graphml, .gexf or node-link .json file,
    whose edges' ``weight`` counts where all have one.
    """
    from importlib import import_module

    from graphprune.export.graph_files import read_weighted_graph

    spectral: Any = import_module("graphprune.spectral")
    graph, weights = read_weighted_graph(path)
    pair = (graph, weights)
    sizes = spectral.component_sizes(graph)
    facts: dict[str, Any] = {
        "file": str(path),
        "nodes": graph.num_nodes,
        "edges": graph.num_edges,
        "weights": "unit" if weights is None else "from the file",
        "components": {
            "strongly connected": len(sizes),
            "largest": int(sizes.max()),
            "of one node": int((sizes == 1).sum()),
        },
    }
    if graph.is_acyclic:
        facts["spectrum"] = (
            "real, since the graph has no cycle; feedback=[(source, target)] closes it for the "
            "spectrum"
        )
        return facts
    spectra = {}
    for laplacian in ("out", "both", "adjacency"):
        values = spectral.spectrum(*pair, laplacian)
        spectra[laplacian] = {
            "complex": int((values.imag != 0).sum()),
            "sum of |Im|": float(abs(values.imag).sum()),
            "largest |Im|": float(values.imag.max()),
        }
    facts["spectrum"] = spectra
    start = spectra["out"]["sum of |Im|"]
    if start > 0:
        mask = spectral.prune(*pair, goal="damp", size=0.9)
        left = spectral.spectrum(
            (graph.edge_index[:, mask.kept], graph.num_nodes),
            None if weights is None else weights[mask.kept],
        )
        facts["damping a tenth of the edges leaves"] = float(abs(left.imag).sum() / start)
    return facts


def _example(batch: Batch, tokenizer: Any) -> dict[str, Any]:
    from graphprune.study.by_name import SystemTasks

    if isinstance(tokenizer, SystemTasks):  # no words
        return {}

    def prompt(side: Any) -> str:
        ids = side["input_ids"][0]
        mask = side.get("attention_mask")
        return str(tokenizer.decode(ids if mask is None else ids[mask[0].bool()]))

    def words(ids: Tensor | None) -> list[str] | None:
        if ids is None:
            return None
        return [str(tokenizer.decode([i])) for i in ids[0].reshape(-1).tolist() if i >= 0]

    example = {
        "clean": prompt(batch.clean),
        "corrupt": None if batch.corrupt is None else prompt(batch.corrupt),
        "answer": words(batch.answer),
        "distractor": words(batch.distractor),
    }
    return {key: value for key, value in example.items() if value is not None}


def performance(model: MaskedModel, task: Task) -> dict[str, dict[str, float]]:
    """Mean metrics of the unmasked model on the clean and on the corrupted prompts."""
    import torch

    from graphprune.core.mask import EdgeMask
    from graphprune.evaluation import evaluate

    paired = next(task.batches(1)).corrupt is not None
    names = ("accuracy", "top1_accuracy", "logit_diff", "prob_diff")
    metrics: list[str | Metric] = list(names)
    metrics += [] if task.metric.name in {*names, "kl"} else [task.metric]
    whole = EdgeMask(model.graph, torch.ones(model.graph.num_edges))
    report = evaluate(
        model, task, whole, ablation="counterfactual" if paired else "zero", metrics=metrics
    )
    sides = {"clean": report.full, **({"corrupted": report.ablated} if paired else {})}
    measured = {
        side: {name: value for name, value in named.items() if name != "kl"}
        for side, named in sides.items()
    }
    return {side: named for side, named in measured.items() if named}


def task_warning(performance: dict[str, dict[str, float]], model: str, task: str) -> str | None:
    """A sentence where the model does not do the task."""
    accuracy = performance.get("clean", {}).get("accuracy")
    if accuracy is None:
        return f"task {task!r} names no answers, so whether {model} does it cannot be told"
    if accuracy >= SOLVED:
        return None
    return (
        f"{model} does not do {task!r}: accuracy {accuracy:.2f} (answer against distractor, where "
        f"there is one) is below {SOLVED}; a circuit found on it explains little"
    )


def system_facts(name: str) -> dict[str, Any]:
    """What a kind of system is, and its options with types and defaults, from its own docstring."""
    from graphprune.study.cases import system_function, system_names, system_options
    from graphprune.study.settings import known_name, type_text

    kind = known_name("kind of system", name, system_names())
    make, options = system_function(kind), system_options(kind)
    described = _arguments_of(inspect.getdoc(make) or "")
    shown = {}
    for option, hint in options.types.items():
        known = option in options.defaults
        default = f"default {options.defaults[option]}" if known else "required"
        shown[option] = f"{type_text(hint)}, {default}. {described.get(option, '')}".strip()
    if options.others:
        shown["..."] = "settings of the task, as 'graphprune info --task NAME' lists them"
    return {"system": kind, "about": _about(make), **shown}


def _about(thing: Callable[..., Any]) -> str:
    """The docstring up to its arguments, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\nArgs:")[0].split())


def method_facts(name: str) -> dict[str, Any]:
    """What a method does, and its settings with their defaults, from its own docstrings."""
    from graphprune.core.registry import method_names
    from graphprune.core.variants import HasVariants
    from graphprune.study.settings import method_kind, same_name, settings_of

    kind = method_kind(name)
    name = same_name(name, method_names()) or name  # an import path is as it is
    described: dict[str, str] = {}
    for base in reversed(kind.__mro__):  # the class's own words win
        described |= _arguments_of(inspect.cleandoc(base.__doc__ or ""))
    settings = {
        setting: f"{default or 'required'}. {described.get(setting, '')}".strip()
        for setting, default in settings_of(kind).items()
    }
    if issubclass(kind, HasVariants):
        for variant, given in kind.variants.items():
            shown = ", ".join(f"{setting}={value}" for setting, value in given.items())
            settings[f"variant {variant}"] = shown
    public = kind.__module__.startswith("graphprune.")
    python = f"gp.{kind.__name__}" if public else f"{kind.__module__}.{kind.__name__}"
    return {"method": name, "python": python, "about": _about(kind), **settings}


def _arguments_of(docstring: str) -> dict[str, str]:
    """``{argument: description}`` of a docstring's section ``Args:``."""
    _, _, part = docstring.partition("\nArgs:\n")
    described: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", part.split("\n\n")[0]):
        names, colon, text = entry.strip().partition(": ")
        if colon:
            words = re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", text.replace("``", ""))
            words = " ".join(words.split())
            described |= {name.strip(): words for name in names.split(",")}
    return described
