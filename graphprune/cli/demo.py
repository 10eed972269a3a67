"""``graphprune demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.job import AsJson, Debug, Quiet, cells, job
from graphprune.cli.options import Seed

if TYPE_CHECKING:
    from rich.console import Console


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path(
        "graphprune-demo"
    ),
    examples: Annotated[
        int, typer.Option("--examples", "-n", min=4, help="Prompts; half of them are held out.")
    ] = 64,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="PATH_OR_ID", help="Another language model.")
    ] = "smollm2",
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 16,
    seed: Seed = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a circuit that is not a demo's in --out.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find, check and draw a circuit of SmolLM2-135M (fetched once), in a minute or two."""
    with job(quiet=quiet, as_json=as_json, debug=debug) as jobs:
        from graphprune.cli.demo_run import require_demo_folder, run_demo

        require_demo_folder(out, overwrite)
        from graphprune.study.loading import load_model

        loaded = load_model(model, note=jobs.told)
        found = run_demo(
            loaded.model, loaded.tokenizer, out, examples=examples, seed=seed,
            batch_size=batch_size, say=jobs.note,
        )  # fmt: skip
        document = {**found.document, "out": str(out)}
        _warn(jobs.warn, document, loaded.name)
        jobs.result(document, lambda console: _show(console, document))


def _warn(warn: Any, document: dict[str, Any], name: str) -> None:
    from graphprune.cli.describe import not_solved

    warning = not_solved({"clean": document["report"]["full"]}, name, "ioi")
    if warning:
        warn(warning)


def _show(console: Console, document: dict[str, Any]) -> None:
    from graphprune.cli.demo_run import FILES
    from graphprune.cli.output import show_report

    report, task = document["report"], document["task"]
    full = report["full"]
    console.print(
        f"The model solves the task: accuracy {full['accuracy']:.2f} (answer against distractor; "
        f"top-1 {full['top1_accuracy']:.2f}), logit difference "
        f"{full['logit_diff']:.2f}, on {task['held_out']} held-out prompts.",
        markup=False,
    )
    selection = document["selection"]
    rows = [
        (
            f"{tried['size']:g}",
            str(tried["kept"]),
            f"{tried['faithfulness']:.3f}",
            "chosen" if tried["size"] == selection["chosen"] else "",
        )
        for tried in selection["tried"]
    ]
    columns = ["share of edges", "edges", "faithfulness", ""]
    title = f"the strongest edges, on the {task['train']} training prompts"
    cells(console, title, columns, rows, numbers=True)
    share = document["kept"] / document["graph_edges"]
    title = (
        f"the circuit: {document['kept']} of {document['graph_edges']} edges ({share:.1%}), on "
        f"{task['held_out']} held-out prompts"
    )
    show_report(console, report, title)
    console.print(f"written to {document['out']}: {', '.join(FILES)}", markup=False)
