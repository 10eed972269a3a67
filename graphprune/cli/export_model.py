"""``graphprune export-model``: a circuit as a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.job import AsJson, Debug, Quiet, cells, job
from graphprune.cli.options import Device, Dtype, Examples, ModelName, Seed, TaskSettings

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["export_model"]


def export_model(
    folder: Annotated[Path, typer.Argument(metavar="CIRCUIT_DIR", help="A circuit's folder.")],
    model: ModelName,
    out: Annotated[Path, typer.Option(help="A folder that is new or empty.")],
    ablation: Annotated[
        str | None,
        typer.Option(help="zero, mean or mean_positional; by default the circuit's, else zero."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", help="Whose prompts means are taken over, and the model is judged on."
        ),
    ] = None,
    task_set: TaskSettings = [],  # noqa: B006
    examples: Examples = None,
    logits_to_keep: Annotated[
        int, typer.Option(min=0, help="Last positions with logits; 0: all. 1 is fastest.")
    ] = 0,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    tokenizer: Annotated[str | None, typer.Option(help="If not the model's own.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    allow_difference: Annotated[
        bool,
        typer.Option(
            "--allow-difference",
            help="Write it even where it is another model than the circuit as found: with a KL "
            "from it above 0.1 nats a prompt of --task.",
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a circuit as a model.pt2 that torch alone runs, with its cost beside the original's."""
    with job(quiet=quiet, as_json=as_json, debug=debug) as now:
        from graphprune.cli.evaluate import warn_of_stop
        from graphprune.core.circuit import Circuit
        from graphprune.export.agreement import LIMIT
        from graphprune.study.loading import load_model, load_task

        circuit = Circuit.load(folder)
        warn_of_stop(now, circuit)
        loaded = load_model(model, dtype=dtype, device=device, tokenizer=tokenizer, note=now.told)
        made = None
        if task is not None:
            made = load_task(
                task, loaded.tokenizer, examples=examples, seed=seed, metric=None,
                batch_size=None, settings=task_set,
            )  # fmt: skip
        done = circuit.export_model(
            out,
            loaded.model,
            ablation=ablation,
            task=made,
            logits_to_keep=logits_to_keep,
            overwrite=overwrite,
            allow_difference=allow_difference,
        )

        used, found = done.report["ablation"], done.report["found_under"]
        performance = done.report["performance"]
        if "task" not in performance:
            why = performance["absent"]["task"]
            if found not in (None, used):
                why = f"it was found under {found} ablation and is exported under {used}; {why}"
            now.warn(f"nothing is known of how well the exported model does: {why}")
        elif "found" not in performance:
            now.warn(f"not compared with the circuit as found: {performance['absent']['found']}")
        elif performance["exported"].get("kl_from_found", 0.0) > LIMIT:
            kl = performance["exported"]["kl_from_found"]
            now.warn(f"another model than the circuit as found: KL {kl:.3g} nats a prompt from it")

        def show(console: Console) -> None:
            sides = [done.report["original"], done.report["exported"]]
            names = [name for name in sides[0] if name in sides[1]]
            rows = [[name, *(_text(side[name]) for side in sides)] for name in names]
            cells(console, "cost", ["", "original", "exported"], rows, numbers=True)
            if "task" in performance:
                _show_performance(console, performance)
            console.print(f"written to {done.path}", markup=False)

        now.result({"path": str(done.path), "report": dict(done.report)}, show)


def _show_performance(console: Console, performance: dict[str, Any]) -> None:
    """A row for each figure: the circuit as found, the masked run, the exported, the original."""
    from graphprune.cli.output import MEANINGS, NAMES
    from graphprune.export.agreement import SIDES

    sides = [side for side in SIDES if side in performance]
    names = dict.fromkeys(name for side in sides for name in performance[side])
    labels = {**NAMES, "kl": "KL from the original", "kl_from_found": "KL from as found"}
    rows = [
        [labels.get(name, name), *(_text(performance[side].get(name, "")) for side in sides)]
        for name in sorted(names, key="ablation".__ne__)
    ]
    title = f"on {performance['prompts']} prompts of {performance['task']}"
    cells(console, title, ["", *(SIDES[side] for side in sides)], rows, numbers=True)
    titles = " ".join(row[0] for row in rows)
    shown = [words for words in ("vs distractor", "top-1") if words in titles]
    told = [f"{words}: {MEANINGS[words]}" for words in shown]
    console.print("; ".join(told), markup=False)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
