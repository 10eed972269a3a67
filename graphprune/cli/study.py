"""``graphprune study``: a table of jobs from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.command import CommandOutput, table
from graphprune.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["study"]


def study(
    out: CommandOutput,
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="What to compare.")],
    place: Annotated[
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
) -> None:
    """Compare methods on systems and tasks, over densities and seeds.

    Jobs are independent: a stopped or killed study goes on where it was, a failing job stops no
    other; what has other prompts, weights or settings than before is run anew. Names of files start
    from the YAML's folder. Writes results.csv, results.parquet, summary.csv and report.html.
    """
    from graphprune.study import Study

    if not file.is_file():
        raise InputError(f"the study {file} is not there")
    plan = Study.from_yaml(file)
    place = file.with_suffix("") if place is None else place
    out.start()
    out.note(f"{plan.name}: {len(plan.jobs())} jobs, results in {place}")
    results = plan.results(place) if show else plan.run(place, jobs=jobs, retry=retry)
    if show:
        results.write(place)
    overall = results.overall()
    failures = [{**failed.label, "why": why} for failed, why in results.failures()]
    for failure in failures:
        out.warn("{system}/{task}/{method} seed {seed} failed: {why}".format(**failure))
    document: dict[str, Any] = {
        "name": plan.name,
        "jobs": results.counts,
        "left_aside": dict(results.aside),
        "notes": results.notes(),
        "failures": failures,
        "out": str(place),
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
        console.print(f"report: {place / 'report.html'}")

    out.result(document, show_table)
    if failures:
        raise SystemExit(1)
