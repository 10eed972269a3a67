"""``graphprune study``: a table of jobs from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.command import CommandOutput, table
from graphprune.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.study import Study, StudyCheck, StudyResults

__all__ = ["study"]


def study(
    out: CommandOutput,
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="What to compare.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="A folder for results; by default the file's name without its suffix."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes at once.")] = 1,
    retry: Annotated[bool, typer.Option(help="Run jobs again that failed before.")] = True,
    show: Annotated[
        bool, typer.Option("--show", help="Only show what is finished; run nothing.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only check: build each case once, list every mistake, estimate passes and time; "
            "run no job.",
        ),
    ] = False,
) -> None:
    """Compare methods on systems and tasks, over densities and seeds.

    Jobs are independent: a stopped or killed study goes on where it was, a failing job stops no
    other; what has other prompts, weights or settings than before is run anew. Names of files start
    from the YAML's folder. Writes results.csv, results.parquet, summary.csv, ties.csv and
    report.html.
    """
    from graphprune.study import Study

    if not file.is_file():
        raise InputError(f"the study {file} is not there")
    if check and show:
        raise InputError("--check and --show do different things; give one of them")
    plan = Study.from_yaml(file)
    if check:
        _check(out, plan, file)
        return
    folder = file.with_suffix("") if folder is None else folder
    out.start()
    out.note(f"{plan.name}: {len(plan.jobs())} jobs, results in {folder}")
    results = plan.results(folder) if show else plan.run(folder, jobs=jobs, retry=retry)
    if show:
        results.write(folder)
    failures = [{**failed.label, "why": why} for failed, why in results.failures()]
    for message in _failure_messages(results, already_told=retry and not show):
        out.warn(message)
    overall = results.overall()
    document: dict[str, Any] = {
        "name": plan.name,
        "jobs": results.counts,
        "left_aside": dict(results.aside),
        "notes": results.notes(),
        "failures": failures,
        "out": str(folder),
        "overall": overall.to_dict("records"),
        "summary": results.summary().to_dict("records"),
    }

    def show_table(console: Console) -> None:
        names = ["tasks", "cpr", "cmd", "log_area", "auroc", "seconds", "rank_cmd"]
        names = [name for name in names if name in overall]
        rows = [
            [str(row["method"]), *(f"{row[name]:.3g}" for name in names)]
            for _, row in overall.iterrows()
        ]
        if rows:
            table(console, plan.name, ["method", *names], rows, numbers=True)
        for note in results.notes():
            console.print(note)
        console.print(f"report: {folder / 'report.html'}")

    out.result(document, show_table)
    if failures:
        raise SystemExit(1)


def _failure_messages(results: StudyResults, *, already_told: bool) -> list[str]:
    """One sentence for each reason why jobs of a system failed, whatever their number.

    ``already_told``: without the cases that could not be made, of which the run has told.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for job, record in results.records:
        if record["state"] == "failed" and not (already_told and record["contents"] is None):
            label = f"{job.system.name}/{job.task}/{job.method.name} seed {job.seed}"
            groups.setdefault((job.system.name, record["why"]), []).append(label)
    return [
        f"{labels[0]} failed: {why}"
        if len(labels) == 1
        else f"{len(labels)} jobs of {system} failed ({labels[0]}, ...): {why}"
        for (system, why), labels in groups.items()
    ]


def _check(out: CommandOutput, plan: Study, file: Path) -> None:
    """Prints what would run; ends with 2 where a case cannot be built."""
    from graphprune.study.mistakes import StudyMistakes
    from graphprune.study.yaml_file import read_yaml

    out.note(f"{plan.name}: building each case once and timing a pass of it")
    checked = plan.check()
    mistakes = StudyMistakes(checked.mistakes).in_file(str(file), read_yaml(file).lines)
    document = {
        "name": plan.name,
        "jobs": checked.jobs,
        "seconds": checked.seconds,
        "cases": [vars(case) for case in checked.cases],
        "mistakes": [vars(mistake) for mistake in mistakes.mistakes],
    }
    out.result(document, lambda console: _show_check(console, checked))
    if checked.mistakes:
        raise mistakes


def _show_check(console: Console, checked: StudyCheck) -> None:
    from graphprune.util.quantities import time_text

    columns = ["case", "edges", "train", "test", "jobs", "passes", "trials", "time"]
    rows = [
        (
            f"{case.system}: {case.task}",
            *(f"{n:,}" for n in (case.edges, case.train, case.test, case.jobs)),
            f"{case.passes:,}",
            f"{case.trials:,}",
            time_text(case.seconds),
        )
        for case in checked.cases
    ]
    if rows:
        table(console, checked.name, columns, rows, numbers=True)
    for case in checked.cases:
        for remark in case.remarks:
            console.print(f"{case.system}: {case.task}: {remark}")
    console.print(
        f"{checked.jobs} jobs, about {time_text(checked.seconds)} in one process. A pass is one "
        "forward and backward run of a batch, a trial one forward run under a mask; counts are "
        "what methods plan at most (a search may end sooner), times are of one measured pass and "
        "trial of each case."
    )
