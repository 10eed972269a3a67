"""``graphprune export``."""

from __future__ import annotations

from typing import Annotated

import typer

from graphprune.cli.command import CommandOutput
from graphprune.cli.options import CircuitFolder, Overwrite
from graphprune.errors import InputError


def export(
    out: CommandOutput,
    folder: CircuitFolder,
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
    overwrite: Overwrite = False,
) -> None:
    """Write a circuit in the formats that other programs read."""
    from graphprune.cli.judged_circuit import saved_circuit
    from graphprune.cli.output import MIB_SUFFIXES, export_target, require_absent, write_export

    targets = [export_target(wish, folder) for wish in to]
    if d_model is not None and not any(
        target.name.lower().endswith(MIB_SUFFIXES) for target in targets
    ):
        raise InputError("--d-model is for --to mib and --to mib-pt")
    require_absent(targets, overwrite)
    circuit = saved_circuit(out, folder)
    files = [str(write_export(circuit, target, d_model)) for target in targets]
    document = {"circuit": str(folder), "files": files}
    out.result(document, lambda console: console.print("\n".join(files)))
