"""``graphprune info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.command import CommandOutput, table
from graphprune.cli.options import OptionalModel, OptionalTask

if TYPE_CHECKING:
    from rich.console import Console


def info(
    out: CommandOutput,
    model: OptionalModel,
    task: OptionalTask,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Describe a method and all its settings.")
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Describe a kind of system and all its options."),
    ] = None,
    circuit: Annotated[Path | None, typer.Option(metavar="DIR", help="Describe a circuit.")] = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE_OR_DIR",
            help="Describe a directed graph: components, spectrum, what spectral pruning could do. "
            "A circuit's folder or a .graphml, .gexf or node-link .json file.",
        ),
    ] = None,
) -> None:
    """Describe a model, task, method, system, circuit or graph; without options, list all names.

    With --model and --task also how well the model does the task.
    """
    from graphprune.cli import facts
    from graphprune.cli.judged_circuit import saved_circuit

    parts: dict[str, dict[str, Any]] = {}
    if circuit is not None:
        parts["circuit"] = facts.circuit_facts(saved_circuit(out, circuit), circuit)
    if graph is not None:
        parts["graph"] = facts.graph_facts(graph)
    if method is not None:
        parts["method"] = facts.method_facts(method)
    if system is not None:
        parts["system"] = facts.system_facts(system)
    if model.model is not None:
        loaded, prompts = out.load(model, task)
        parts["model"] = facts.model_facts(loaded)
        if prompts is not None:
            parts["task"] = facts.task_facts(prompts, loaded.tokenizer)
            measured = facts.performance(loaded.model, prompts)
            parts["task"]["performance"] = measured
            warning = facts.task_warning(measured, loaded.name, prompts.name)
            if warning:
                parts["task"]["warning"] = warning
                out.warn(warning)
    elif task.task is not None and model.tokenizer is not None:
        from graphprune.study.by_name import choose_task, load_tokenizer

        make = choose_task(**vars(task))
        tokenizer = load_tokenizer(model.tokenizer)
        parts["task"] = facts.task_facts(make(tokenizer), tokenizer)
    elif task.task is not None:
        parts["task"] = facts.task_facts_without_model(task.task)
    if parts:
        out.result(parts, lambda console: _show_parts(console, parts))
    else:
        known = facts.known_names()
        out.result(known, lambda console: _show_names(console, known))


def _show_parts(console: Console, parts: dict[str, dict[str, Any]]) -> None:
    from graphprune.util.plain import flatten, plain

    for title, facts in parts.items():
        shown = {k: v for k, v in facts.items() if k not in ("performance", "warning")}
        table(console, title, ["", ""], [(k, _line(v)) for k, v in flatten(plain(shown))])
        performance = facts.get("performance")
        if performance:
            from graphprune.cli.output import NAMES

            # Without distractors accuracy is that of top 1, which stands below it.
            alone = "logit_diff" not in performance["clean"]
            rows: list[list[str]] = [
                [
                    NAMES.get(str(name), str(name)),
                    *(_number(performance[side].get(name)) for side in performance),
                ]
                for name in performance["clean"]
                if not (alone and name == "accuracy")
            ]
            table(console, "how well the model does it", ["", *performance], rows, numbers=True)


def _line(text: str) -> str:
    return text.replace("\n", "⏎")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _show_names(console: Console, known: dict[str, Any]) -> None:
    rows = [(adapter, ", ".join(types)) for adapter, types in known["architectures"].items()]
    table(console, "architectures", ["adapter", "model types"], rows)
    table(console, "methods", ["--method", ""], list(known["methods"].items()))
    table(console, "tasks", ["--task", ""], list(known["tasks"].items()))
    table(console, "systems of studies", ["--system", ""], list(known["systems"].items()))
    rest = [(key, ", ".join(known[key])) for key in ("metrics", "ablations", "formats", "fetch")]
    table(console, "and", ["", ""], rest)
