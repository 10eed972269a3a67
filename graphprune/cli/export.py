"""``graphprune export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli.job import AsJson, Debug, Quiet, job


def export(
    folder: Annotated[Path, typer.Argument(metavar="CIRCUIT_DIR", help="A circuit's folder.")],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="FILE_OR_FORMAT",
            help="A file, whose suffix says the format, or a format: graphml, gexf, node-link, "
            "cytoscape, dot, mib, mib-pt, csv, html, svg, png, pdf (written into CIRCUIT_DIR). "
            "Repeatable.",
        ),
    ],
    d_model: Annotated[
        int | None,
        typer.Option(
            "--d-model",
            min=1,
            help="Width of the residual stream, for mib and mib-pt where the circuit does not say.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a circuit in the formats that other programs read."""
    with job(quiet=quiet, as_json=as_json, debug=debug) as out:
        from graphprune.cli.output import MIB_SUFFIXES, export_target, require_absent, write_export
        from graphprune.core.circuit import Circuit
        from graphprune.errors import InputError

        targets = [export_target(wish, folder) for wish in to]
        if d_model is not None and not any(
            target.name.lower().endswith(MIB_SUFFIXES) for target in targets
        ):
            raise InputError("--d-model is for --to mib and --to mib-pt")
        require_absent(targets, overwrite)
        circuit = Circuit.load(folder)
        files = [str(write_export(circuit, target, d_model)) for target in targets]
        out.result(
            {"circuit": str(folder), "files": files},
            lambda console: console.print("\n".join(files), markup=False),
        )
