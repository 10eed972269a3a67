"""``graphprune submission``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graphprune.cli.command import CommandOutput, table
from graphprune.cli.options import OptionalModel, OptionalTask
from graphprune.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.evaluation import FaithfulnessCurve


def submission(
    out: CommandOutput,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A submission, or its folder for one task and model (ioi_gpt2)."
        ),
    ],
    model: OptionalModel,
    task: OptionalTask,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .json or .pt file whose edges in the graph are the true "
            "circuit: also MIB's AUROC and the usual one. Needs no model.",
        ),
    ] = None,
    level: Annotated[
        Literal["edge", "node"] | None,
        typer.Option(help="For files with scores of both; by default nodes where they have any."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Of the folder with MIB's data set: train, validation or test. Default: test, as "
            "the leaderboard's evaluator takes (of a private set); else validation, as MIB's own "
            "script does."
        ),
    ] = None,
) -> None:
    """Check a submission to MIB's circuit track, and score it as its evaluator does.

    Names and files are read as the evaluator reads them; where it is lenient, a remark says so.
    With --model and --task the folder is also scored, on the test split where there is one.
    """
    if (model.model is None) != (task.task is None):
        raise InputError("scoring needs both --model and --task")
    if split is not None and task.task is None:
        raise InputError("--split is of the data set to score on; give --model and --task too")
    for path in (folder, truth):
        if path is not None and not path.exists():
            raise InputError(f"{path} is not there")
    if model.model is None and truth is None:
        _check(out, folder)
        return
    document: dict[str, Any] = {"folder": str(folder)}
    curve: FaithfulnessCurve | None = None
    if truth is not None:
        document |= _recovered(folder, truth)
    if task.task is not None:
        settings = _with_split(task.task, split, task.task_set)
        curve, facts = _scored(out, folder, level, model, replace(task, task_set=settings))
        document |= facts
    out.result(document, lambda console: _show_scored(console, document, curve))


def _check(out: CommandOutput, folder: Path) -> None:
    from graphprune.export import check_submission

    checked = check_submission(folder)
    document: dict[str, Any] = {"folders": [asdict(one) for one in checked]}
    tasks, models = {c.task for c in checked}, {c.model for c in checked}
    if len(tasks - {None}) < 2 or len(models - {None}) < 2:
        document["note"] = "the leaderboard asks for at least two tasks and two models"
    out.result(document, lambda console: _show_checked(console, document))
    if any(one.problem for one in checked):
        raise SystemExit(1)


def _scored(
    out: CommandOutput,
    folder: Path,
    level: Literal["edge", "node"] | None,
    model: OptionalModel,
    task: OptionalTask,
) -> tuple[FaithfulnessCurve, dict[str, Any]]:
    from graphprune.cli.output import curve_document
    from graphprune.export import read_submission
    from graphprune.mib.curve import mib_curve

    loaded, prompts = out.load(model, task)
    assert prompts is not None
    read = read_submission(folder, loaded.model.graph, level=level)
    split = prompts.notes.get("split")
    rows = ("left_out", "dropped", "shared_token") if split is not None else ()
    name = prompts.name if split is None else f"{prompts.name} ({split})"
    out.note(f"scoring {folder} on {len(prompts)} prompts of {name}")
    for remark in read.remarks:
        out.warn(f"{folder}: {remark}")
    if split is None:
        out.note("these prompts are not of MIB's data sets, which the benchmark scores on")
    elif split != "test":
        out.note(f"the benchmark's leaderboard scores on a test split, not on {split}")
    curve = mib_curve(loaded.model, prompts, read.found, batch_size=task.batch_size)
    facts = {
        "model": model.model,
        "task": prompts.name,
        "split": split,
        "prompts": len(prompts),
        **{key: prompts.notes[key] for key in rows if key in prompts.notes},
        "remarks": list(read.remarks),
        "level": "circuits" if read.circuits else read.level,
        **curve_document(curve),
        "average": curve.average,
        "cpr_log": curve.cpr_log,
        "cmd_log": curve.cmd_log,
    }
    return curve, facts


def _with_split(task: str, split: str | None, settings: list[str]) -> list[str]:
    """The task's settings with the split to score on; of other tasks than MIB's as they are."""
    from graphprune.mib.data import holds_data_set, split_names
    from graphprune.study.settings import pairs, same_name
    from graphprune.tasks import TASKS

    if split is not None:
        return [*settings, f"split={split}"]
    given = pairs(settings, "--task-set")
    folder = Path(task).expanduser()
    if "split" in given or same_name(task, TASKS) or not holds_data_set(folder):
        return settings
    splits = split_names(folder, given.get("config"))
    for usual in ("test", "validation"):
        if usual in splits:
            return [*settings, f"split={usual}"]
    raise InputError(
        f"{folder} has neither a test nor a validation split, only {', '.join(splits)}, on which "
        f"MIB finds circuits and does not score them; to score on it say --split {splits[0]}"
    )


def _recovered(folder: Path, truth: Path) -> dict[str, float]:
    from graphprune.evaluation import auroc
    from graphprune.export import from_mib_json, from_mib_pt, read_submission
    from graphprune.mib.curve import mib_auroc

    read = read_submission(folder, level="edge")
    if read.scores is None:
        raise InputError(f"AUROC needs scores of edges; {folder} holds circuits")
    reader = from_mib_pt if truth.suffix == ".pt" else from_mib_json
    _, true = reader(truth, read.graph, ungrouped="any", unscored="zero")
    return {
        "mib_auroc": mib_auroc(read.scores, true),
        "auroc": auroc(read.scores, true),
        "true_edges": true.num_kept,
    }


def _show_checked(console: Console, document: dict[str, Any]) -> None:
    rows = [
        (one["folder"], one["level"], str(one["files"]), one["problem"] or "fine")
        for one in document["folders"]
    ]
    table(console, "submission", ["folder", "level", "files", ""], rows)
    for one in document["folders"]:
        for remark in one["remarks"]:
            console.print(f"{one['folder']}: {remark}")
    if "note" in document:
        console.print(document["note"])


def _show_scored(
    console: Console, document: dict[str, Any], curve: FaithfulnessCurve | None
) -> None:
    from graphprune.cli.output import show_curve

    if curve is not None:
        split = "" if document["split"] is None else f", split {document['split']}"
        title = (
            f"{document['level']} scores on {document['prompts']} prompts of "
            f"{document['task']}{split}"
        )
        show_curve(console, curve, title)
    names = ("average", "cpr_log", "cmd_log", "mib_auroc", "auroc")
    shown = [f"{name} {document[name]:.3f}" for name in names if name in document]
    console.print("  ".join(shown))
