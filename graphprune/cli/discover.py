"""``graphprune discover``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import typer

from graphprune.cli.command import CommandOutput
from graphprune.cli.options import Ablations, ModelOptions, Overwrite, UnseededTask
from graphprune.cli.selecting import By, Selection, Ways
from graphprune.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.core.graph import ComputationalGraph
    from graphprune.core.task import Task

HELD_OUT = 0.25
ANSWERED = 5  # prompts whose answers stand in the page


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What finds the circuit."""

    panel: ClassVar[str] = "Method"
    method: Annotated[
        str,
        typer.Option(help="How edges are scored or pruned; `graphprune info` lists the methods."),
    ] = "eap-ig"
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A variant of the method, such as paper: its authors' settings, where --set says "
            "none. `graphprune info --method NAME` lists them.",
        ),
    ] = None
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method; repeatable."),
    ] = field(default_factory=list)
    ablation: Ablations = None
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            help="For mask optimisers: a folder for checkpoints; naming it again resumes the run.",
        ),
    ] = None
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Share of the prompts kept apart for the report; 0: report on the same prompts. "
            "Default 0.25 from 8 prompts on.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Which edges are kept."""

    panel: ClassVar[str] = "Selection"
    size: Annotated[
        str | None,
        typer.Option(
            help="Edges to keep: a number such as 200, or a fraction (default 0.01; mask "
            "optimisers: 0.02)."
        ),
    ] = None
    select: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="top (default): the best; greedy: grown from the output; threshold: all from a "
            "score on; nodes: nap's; with no dead ends: connected, ilp (integer programming), pnr "
            "(positives first), bootstrap (those told apart from 0 first), influence, polish (by "
            "what cutting costs).",
        ),
    ] = None
    select_set: Annotated[
        list[str],
        typer.Option(
            "--select-set", metavar="NAME=VALUE", help="A setting of --select; repeatable."
        ),
    ] = field(default_factory=list)
    by: Annotated[
        By | None,
        typer.Option(help="Rank by size (default) or with the sign.", case_sensitive=False),
    ] = None
    threshold: Annotated[
        float | None, typer.Option(help="For --select threshold: the lowest score kept.")
    ] = None
    prune_dead_ends: Annotated[
        bool,
        typer.Option(
            "--prune-dead-ends/--keep-dead-ends", help="Drop edges on no path to the output."
        ),
    ] = True


def discover(
    out: CommandOutput,
    model: ModelOptions,
    task: UnseededTask,
    method_options: MethodOptions,
    selection_options: SelectionOptions,
    folder: Annotated[
        Path,
        typer.Option("--out", "-o", help="The folder to write.", rich_help_panel="Output"),
    ],
    exports: Annotated[
        str,
        typer.Option(
            "--export",
            help="Further formats, such as graphml,mib,html,svg (in --out).",
            rich_help_panel="Output",
        ),
    ] = "",
    overwrite: Overwrite = False,
) -> None:
    """Find a circuit: score or prune the edges, keep the best, report how faithful they are."""
    from graphprune.cli.output import formats, require_free

    # All that can be refused is refused before the model is loaded.
    wishes = formats(exports)
    require_free(folder, overwrite=overwrite)

    from graphprune.cli.output import FILE_OF, report_document, show_report, write_export
    from graphprune.cli.selecting import find, passes_by_bar
    from graphprune.core.circuit import Circuit
    from graphprune.core.method import Pruner
    from graphprune.evaluation import evaluate
    from graphprune.methods import resolve_ablation
    from graphprune.study.by_name import SystemTasks
    from graphprune.util.files import atomic_folder

    method, selection = _method_and_selection(method_options, selection_options, task)
    loaded, whole_task = out.load(model, task)
    assert whole_task is not None
    masked, seed = loaded.model, task.seed or 0
    edges = masked.graph.num_edges
    with out.checking():
        train, test = _split(whole_task, method_options.held_out, seed)
        requested = _requested(method, selection, masked.graph)
        passes_by_bar(method, masked)  # steps=0 is wrong usage, not a job that failed
    wanted = "" if requested is None else f", {requested} requested"
    out.note(f"{edges} edges{wanted}; {method.label} on {len(train)} prompts of {whole_task.name}")
    result = find(method, selection, masked, train)
    mask, scores, selected = result.mask, result.scores, result.notes["selected"]
    assert mask is not None
    kept = mask.num_kept
    where = "prompts, those it was found on" if test is train else "held-out prompts"
    out.note(f"{kept} edges kept; evaluating on {len(test)} {where}")
    ablation = resolve_ablation(masked, train, result.ablation)
    document = report_document(evaluate(masked, test, mask, ablation=ablation), seed)
    how = result.notes if isinstance(method, Pruner) else selection.to_dict()
    notes: dict[str, Any] = {
        "selection": {**how, "selected": selected, "kept": kept},
        "report_on": "the prompts it was found on" if test is train else "held-out prompts",
    }
    if result.stopped:
        notes["stopped"] = result.stopped
    if FILE_OF["html"] in wishes and not isinstance(loaded.tokenizer, SystemTasks):
        from graphprune.export import prompt_answers

        notes["answers"] = prompt_answers(
            masked, test, mask, loaded.tokenizer, n=ANSWERED, ablation=ablation
        )
    circuit = Circuit.from_mask(
        mask, scores, masked, train, document, method=method, seed=seed, notes=notes
    )
    with atomic_folder(folder) as scratch:
        circuit.save(scratch / "circuit")
        for path in (scratch / "circuit").iterdir():
            path.replace(scratch / path.name)
        (scratch / "circuit").rmdir()
        for wish in wishes:
            write_export(circuit, scratch / wish)
    files = ["circuit.json", "tensors.safetensors", *wishes]
    summary: dict[str, Any] = {
        "out": str(folder),
        "files": files,
        "model": model.model,
        "method": method.label,
        "graph_edges": edges,
        "requested": requested,
        "selected": selected,
        "kept": kept,
        "train_prompts": len(train),
        "report_on": notes["report_on"],
        "report": document,
    }
    if result.stopped:
        summary["stopped"] = result.stopped

    def show(console: Console) -> None:
        title = f"{kept} of {edges} edges on {len(test)} {where} ({whole_task.name})"
        show_report(console, document, f"{title}; {result.stopped}" if result.stopped else title)
        asked = "no number of edges requested" if requested is None else f"{requested} requested"
        dead = f", {selected - kept} of them dead ends" if selected > kept else ""
        console.print(f"edges: {asked}, {selected} selected{dead}, {kept} kept")
        console.print(f"written to {folder}: {', '.join(files)}")
        console.print(f"see it with: graphprune show {folder}")

    out.result(summary, show)
    if result.stopped:
        if method_options.run_dir is not None:
            out.note("the same command with --overwrite resumes the run")
        raise SystemExit(130)


def _method_and_selection(
    method_options: MethodOptions, selection_options: SelectionOptions, task: UnseededTask
) -> tuple[Any, Selection]:
    """The method with all its settings, and how its scores become a mask; both checked."""
    from graphprune.core.method import Pruner
    from graphprune.study.settings import known_ablation, known_name, method_from, parse_size

    size = None if selection_options.size is None else parse_size(selection_options.size)
    select: Any = selection_options.select
    if select is not None:
        select = known_name("selector", select, get_args(Ways), where="--select")
    variant = [] if method_options.variant is None else [f"variant={method_options.variant}"]
    method = method_from(
        method_options.method, [*variant, *method_options.settings], seed=task.seed,
        batch_size=task.batch_size, ablation=known_ablation(method_options.ablation),
    )  # fmt: skip
    if method_options.run_dir is not None:
        if not any(entry.name == "run_dir" for entry in fields(method)):
            raise InputError(
                f"method {method_options.method!r} keeps no checkpoints; --run-dir is for mask "
                "optimisers, such as edge-pruning"
            )
        method = replace(method, run_dir=method_options.run_dir)
    selection = Selection(
        select,
        selection_options.by,
        size,
        selection_options.threshold,
        selection_options.prune_dead_ends,
        tuple(selection_options.select_set),
    )
    selection.check(method, method_options.method)
    return method.sized(size) if isinstance(method, Pruner) else method, selection


def _requested(method: Any, selection: Selection, graph: ComputationalGraph) -> int | None:
    """How many edges were asked for; ``None`` where a threshold, or the method itself, decides."""
    from graphprune.core.mask import budget
    from graphprune.core.method import Pruner
    from graphprune.methods.ensembles import SequentialEnsemble
    from graphprune.methods.optimiser import MaskOptimiser

    optimiser = method.optimiser if isinstance(method, SequentialEnsemble) else method
    if isinstance(optimiser, MaskOptimiser):
        return optimiser.count(graph)
    if selection.way == "nodes":
        return None
    size = selection.size if isinstance(method, Pruner) else selection.to_dict().get("size")
    return None if size is None else budget(size, graph.num_edges)


def _split(task: Task, held_out: float | None, seed: int) -> tuple[Task, Task]:
    """Prompts to find the circuit on and prompts to report on."""
    share = (HELD_OUT if len(task) >= 8 else 0.0) if held_out is None else held_out
    if share == 0.0:
        return task, task
    try:
        return task.split(1.0 - share, seed=seed)
    except InputError as error:
        raise InputError(
            f"{error}. On the command line: --held-out 0 finds and reports on the same prompts; "
            "then judge the circuit with `graphprune evaluate`, on others"
        ) from error
