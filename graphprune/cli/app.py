"""The commands. Their bodies import what they need, so that ``--help`` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from graphprune import __version__
from graphprune.cli.compare import compare
from graphprune.cli.demo import demo
from graphprune.cli.discover import discover
from graphprune.cli.evaluate import evaluate
from graphprune.cli.export import export
from graphprune.cli.export_model import export_model
from graphprune.cli.fetch import fetch
from graphprune.cli.info import info
from graphprune.cli.plan import plan
from graphprune.cli.study import study
from graphprune.cli.submission import submission
from graphprune.cli.testing import examine

__all__ = ["app"]

app = typer.Typer(
    name="graphprune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the small part of a model that does a task, and show how faithful it is.",
    epilog="Exit codes: 0 done, 1 could not be done (stderr says why), 2 wrong usage, 130 stopped.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graphprune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command("demo")(demo)
app.command("fetch")(fetch)
app.command("discover")(discover)
app.command("evaluate")(evaluate)
app.command("compare")(compare)
app.command("test")(examine)
app.command("export")(export)
app.command("export-model")(export_model)
app.command("plan")(plan)
app.command("study")(study)
app.command("submission")(submission)
app.command("info")(info)
