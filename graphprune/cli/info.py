"""``graphprune info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.job import AsJson, Debug, Job, Quiet, cells, job
from graphprune.cli.options import BatchSize, Device, Dtype, Examples, Seed, TaskSettings

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.study.loading import Loaded


def info(
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="PATH_OR_ID", help="Describe a model.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", metavar="NAME_OR_FILE",
            help="Describe a task; with --model also how well the model does it.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Describe a method and all its settings.")
    ] = None,
    circuit: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Describe a circuit.")
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE_OR_DIR",
            help="Describe a directed graph: components, spectrum, what spectral pruning could do. "
            "A circuit's folder or a .graphml, .gexf or node-link .json file.",
        ),
    ] = None,
    task_set: TaskSettings = [],  # noqa: B006 - typer copies it
    examples: Examples = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    tokenizer: Annotated[str | None, typer.Option(help="If not the model's own.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Describe a model, task, method, circuit or graph; without options, list all that is known."""
    with job(quiet=quiet, as_json=as_json, debug=debug) as out:
        from graphprune.cli import describe

        parts: dict[str, dict[str, Any]] = {}
        if circuit is not None:
            parts["circuit"] = describe.circuit_facts(circuit)
        if graph is not None:
            parts["graph"] = describe.graph_facts(graph)
        if method is not None:
            parts["method"] = describe.method_facts(method)
        loaded: Loaded | None = None
        if model is not None:
            from graphprune.study.loading import load_model

            loaded = load_model(
                model, dtype=dtype, device=device, tokenizer=tokenizer, note=out.told
            )
            parts["model"] = describe.model_facts(loaded)
        if task is not None:
            parts["task"] = _task(
                out, task, loaded, tokenizer=tokenizer, examples=examples, seed=seed,
                batch_size=batch_size, settings=task_set,
            )  # fmt: skip
        if not parts:
            out.result(describe.everything(), _show_everything)
            return
        out.result(parts, lambda console: _show_parts(console, parts))


def _task(
    out: Job,
    name: str,
    loaded: Loaded | None,
    *,
    tokenizer: str | None,
    settings: list[str],
    **options: Any,
) -> dict[str, Any]:
    from graphprune.cli import describe
    from graphprune.study.loading import load_task, load_tokenizer

    words = loaded.tokenizer if loaded is not None else None
    if words is None and tokenizer is not None:
        words = load_tokenizer(tokenizer)
    if words is None:
        return describe.untokenized(name)
    made = load_task(name, words, metric=None, settings=settings, **options)
    facts = describe.task_facts(made, words)
    if loaded is not None:
        facts["performance"] = describe.performance(loaded.model, made)
        warning = describe.not_solved(facts["performance"], loaded.name, made.name)
        if warning:
            facts["warning"] = warning
            out.warn(warning)
    return facts


def _show_parts(console: Console, parts: dict[str, dict[str, Any]]) -> None:
    from graphprune.util.plain import flatten, plain

    for title, facts in parts.items():
        shown = {k: v for k, v in facts.items() if k not in ("performance", "warning")}
        cells(console, title, ["", ""], [(k, _line(v)) for k, v in flatten(plain(shown))])
        performance = facts.get("performance")
        if performance:
            from graphprune.cli.output import NAMES

            # Without distractors accuracy is that of top 1, which stands below it.
            alone = "logit_diff" not in performance["clean"]
            rows = [
                (
                    NAMES.get(name, name),
                    *(_number(performance[side].get(name)) for side in performance),
                )
                for name in performance["clean"]
                if not (alone and name == "accuracy")
            ]
            cells(console, "how well the model does it", ["", *performance], rows, numbers=True)


def _line(text: str) -> str:
    return text.replace("\n", "⏎")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _show_everything(console: Console) -> None:
    from graphprune.cli import describe

    known = describe.everything()
    rows = [(adapter, ", ".join(types)) for adapter, types in known["architectures"].items()]
    cells(console, "architectures", ["adapter", "model types"], rows)
    cells(console, "methods", ["--method", ""], list(known["methods"].items()))
    cells(console, "tasks", ["--task", ""], list(known["tasks"].items()))
    rest = [(key, ", ".join(known[key])) for key in ("metrics", "ablations", "formats", "fetch")]
    cells(console, "and", ["", ""], rest)
