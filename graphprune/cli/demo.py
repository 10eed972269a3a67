"""``graphprune demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.command import CommandOutput, table
from graphprune.cli.options import ModelOptions, OptionalTask, Seed

if TYPE_CHECKING:
    from rich.console import Console


def demo(
    out: CommandOutput,
    folder: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path(
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
) -> None:
    """Find, check and draw a circuit of SmolLM2-135M (fetched once), in a minute or two."""
    from graphprune.cli.demo_run import require_demo_folder, run_demo
    from graphprune.cli.facts import task_warning

    require_demo_folder(folder, overwrite)
    loaded, _ = out.load(ModelOptions(model=model), OptionalTask())
    result = run_demo(
        loaded.model, loaded.tokenizer, folder, examples=examples, seed=seed,
        batch_size=batch_size, say=out.note,
    )  # fmt: skip
    document = {**result.document, "out": str(folder)}
    warning = task_warning({"clean": document["report"]["full"]}, loaded.name, "ioi")
    if warning:
        out.warn(warning)
    out.result(document, lambda console: _show(console, document))


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
    table(console, title, columns, rows, numbers=True)
    share = document["kept"] / document["graph_edges"]
    title = (
        f"the circuit: {document['kept']} of {document['graph_edges']} edges ({share:.1%}), on "
        f"{task['held_out']} held-out prompts"
    )
    show_report(console, report, title)
    folder = Path(document["out"])
    console.print(f"written to {folder}: {', '.join(FILES)}")
    console.print(f"\nOpen {folder / 'circuit.html'} in a browser: the circuit, to click through.")
    console.print(f"{folder / 'curve.png'} shows how faithful more and fewer edges are.")
    console.print(f"graphprune show {folder}   # the circuit as a tree, here")
