"""``graphprune discover``."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.job import AsJson, Debug, Quiet, job
from graphprune.cli.options import (
    Ablations,
    BatchSize,
    Device,
    Dtype,
    Examples,
    MethodSeed,
    MetricName,
    ModelName,
    TaskName,
    TaskSettings,
)
from graphprune.cli.selecting import By, Selection, Ways
from graphprune.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.core.task import Task

HELD_OUT = 0.25


def discover(
    model: ModelName,
    task: TaskName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    method: Annotated[
        str,
        typer.Option(help="How edges are scored or pruned; `graphprune info` lists the methods."),
    ] = "eap-ig",
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method; repeatable."),
    ] = [],  # noqa: B006 - typer copies it
    size: Annotated[
        str | None,
        typer.Option(
            help="Edges to keep: a number such as 200, or a fraction (default 0.01; mask "
            "optimisers: 0.02)."
        ),
    ] = None,
    select: Annotated[
        Ways | None,
        typer.Option(
            help="top (default): the best; greedy: grown from the output; nodes: nap's; with no "
            "dead ends: connected, ilp (integer programming), pnr (positives first), bootstrap "
            "(those told apart from 0 first), influence, polish (by what cutting costs)."
        ),
    ] = None,
    select_set: Annotated[
        list[str],
        typer.Option(
            "--select-set", metavar="NAME=VALUE", help="A setting of --select; repeatable."
        ),
    ] = [],  # noqa: B006
    by: Annotated[By | None, typer.Option(help="Rank by size (default) or with the sign.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="For --select threshold: the lowest score kept.")
    ] = None,
    prune_dead_ends: Annotated[
        bool,
        typer.Option(
            "--prune-dead-ends/--keep-dead-ends", help="Drop edges on no path to the output."
        ),
    ] = True,
    metric: MetricName = None,
    ablation: Ablations = None,
    task_set: TaskSettings = [],  # noqa: B006
    examples: Examples = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Share of the prompts kept apart for the report; 0: report on the same prompts. "
            "Default 0.25 from 8 prompts on.",
        ),
    ] = None,
    batch_size: BatchSize = None,
    seed: MethodSeed = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    tokenizer: Annotated[str | None, typer.Option(help="If not the model's own.")] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            help="For mask optimisers: a folder for checkpoints; naming it again resumes the run.",
        ),
    ] = None,
    exports: Annotated[
        str,
        typer.Option("--export", help="Further formats, such as graphml,mib,html,svg (in --out)."),
    ] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the circuit in --out.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find a circuit: score or prune the edges, keep the best, report how faithful they are."""
    with job(quiet=quiet, as_json=as_json, debug=debug) as jobs:
        from graphprune.cli.output import formats, require_free

        # All that can be refused is refused before the model is loaded.
        wishes = formats(exports)
        require_free(out, overwrite=overwrite)
        chosen_size = None if size is None else _parse_size(size)

        from graphprune.cli.output import report_document, show_report, write_export
        from graphprune.cli.selecting import find
        from graphprune.core.circuit import Circuit
        from graphprune.core.method import Pruner
        from graphprune.evaluation import evaluate
        from graphprune.methods import resolve_ablation
        from graphprune.study.loading import load_model, load_task
        from graphprune.study.settings import method_from
        from graphprune.util.files import atomic_folder

        found_by = method_from(
            method, settings, seed=seed, ablation=ablation, batch_size=batch_size
        )
        seed = 0 if seed is None else seed
        found_by = _with_run(found_by, method, run_dir)
        selection = Selection(
            select, by, chosen_size, threshold, prune_dead_ends, tuple(select_set)
        )
        selection.check(found_by, method)
        if isinstance(found_by, Pruner):
            found_by = found_by.sized(chosen_size)
        loaded = load_model(model, dtype=dtype, device=device, tokenizer=tokenizer, note=jobs.told)
        masked = loaded.model
        made = load_task(
            task, loaded.tokenizer, examples=examples, seed=seed, metric=metric,
            batch_size=batch_size, settings=task_set,
        )  # fmt: skip
        train, test = _split(made, held_out, seed)
        jobs.note(
            f"{masked.graph.num_edges} edges; {found_by.label} on {len(train)} prompts of "
            f"{made.name}"
        )
        found = find(found_by, selection, masked, train)
        mask, scores, chosen = found.mask, found.scores, found.notes["selected"]
        assert mask is not None
        same = test is train
        where = "prompts, those it was found on" if same else "held-out prompts"
        jobs.note(f"{mask.num_kept} edges kept; evaluating on {len(test)} {where}")
        kind = resolve_ablation(masked, train, found.ablation)
        report = evaluate(masked, test, mask, ablation=kind)
        document = report_document(report, seed)
        how = found.notes if isinstance(found_by, Pruner) else selection.to_dict()
        notes = {
            "selection": {**how, "selected": chosen, "kept": mask.num_kept},
            "report_on": "the prompts it was found on" if same else "held-out prompts",
        }
        if found.stopped:
            notes["stopped"] = found.stopped
        circuit = Circuit.from_mask(
            mask, scores, masked, train, document, method=found_by, seed=seed, notes=notes
        )
        with atomic_folder(out) as scratch:
            circuit.save(scratch / "circuit")
            for path in (scratch / "circuit").iterdir():
                path.replace(scratch / path.name)
            (scratch / "circuit").rmdir()
            for wish in wishes:
                write_export(circuit, scratch / wish)
        files = ["circuit.json", "tensors.safetensors", *wishes]
        summary: dict[str, Any] = {
            "out": str(out),
            "files": files,
            "model": model,
            "method": found_by.label,
            "graph_edges": masked.graph.num_edges,
            "selected": chosen,
            "kept": mask.num_kept,
            "train_prompts": len(train),
            "report_on": notes["report_on"],
            "report": document,
        }
        if found.stopped:
            summary["stopped"] = found.stopped

        def show(console: Console) -> None:
            edges = f"{mask.num_kept} of {masked.graph.num_edges} edges"
            title = f"{edges} on {len(test)} {where} ({made.name})"
            show_report(console, document, f"{title}; {found.stopped}" if found.stopped else title)
            console.print(f"written to {out}: {', '.join(files)}", markup=False)

        jobs.result(summary, show)
        if found.stopped:
            if run_dir is not None:
                jobs.note("the same command with --overwrite resumes the run")
            raise SystemExit(130)


def _with_run(method: Any, name: str, run_dir: Path | None) -> Any:
    if run_dir is None:
        return method
    if not any(field.name == "run_dir" for field in fields(method)):
        raise InputError(
            f"method {name!r} keeps no checkpoints; --run-dir is for mask optimisers, such as "
            "edge-pruning"
        )
    return replace(method, run_dir=run_dir)


def _parse_size(text: str) -> int | float:
    from graphprune.study.settings import parse_size

    return parse_size(text)


def _split(task: Task, held_out: float | None, seed: int) -> tuple[Task, Task]:
    """Prompts to find the circuit on and prompts to report on."""
    share = (HELD_OUT if len(task) >= 8 else 0.0) if held_out is None else held_out
    if share == 0.0:
        return task, task
    return task.split(1.0 - share, seed=seed)
