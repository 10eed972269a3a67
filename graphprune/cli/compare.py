"""``graphprune compare``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.command import CommandOutput, table
from graphprune.cli.options import Overwrite
from graphprune.errors import GraphMismatchError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.comparison import CircuitComparison, ProfileComparison

FILES = (
    "comparison.csv",
    "profile.csv",
    "profile_differences.csv",
    "overlap.png",
    "profile.png",
    "profile_distances.csv",
)
CHANCE = {
    "uniform": "any edges",
    "composition": "same levels and kinds",
    "degrees": "same degrees",
}


def compare(
    out: CommandOutput,
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="CIRCUIT_DIR CIRCUIT_DIR...", help="Two or more circuits' folders."),
    ],
    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A new folder for comparison.csv, profile.csv, profile_differences.csv, "
            "profile_distances.csv, overlap.png and profile.png.",
        ),
    ] = None,
    strata: Annotated[
        list[str] | None,
        typer.Option(
            "--strata",
            metavar="AXIS",
            help="What random circuits keep under chance by composition: source_level, "
            "target_level, distance, source_depth, target_depth, source_kind, target_kind, kind. "
            "Repeatable. By default level and kind of both ends and kind of edge.",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            min=0, help="Random draws for the overlap of scores; 19 at least for a p of .05."
        ),
    ] = 200,
    bins: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Parts of the depth, where models differ in theirs. By default 4, or as many as "
            "the shallowest has levels.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Compare circuits: what they share beyond chance, and where their edges lie.

    Circuits of models with other layers or heads are compared by relative depth and kind alone:
    by what they keep of what their graphs offer, beyond chance, within the groups that both have.
    The distance of the whole graphs stands beside it.
    """
    from graphprune.cli.judged_circuit import saved_circuit
    from graphprune.comparison import compare_circuits, compare_profiles
    from graphprune.comparison.edge_groups import AXES
    from graphprune.study.settings import known_name

    if len(folders) < 2:
        raise InputError("a comparison needs at least two circuits' folders")
    if target is not None:
        _require_own(target, overwrite)
    axes = [known_name("axis", axis, AXES, where="--strata") for axis in strata or ()] or None
    names = _names(folders)
    circuits = {n: saved_circuit(out, folder) for n, folder in zip(names, folders, strict=True)}
    out.start()
    edges: CircuitComparison | None = None
    why = None
    try:
        edges = compare_circuits(circuits, strata=axes, samples=samples, seed=seed)
    except GraphMismatchError as error:
        why = str(error).partition(". Compare ")[0]
        out.warn(f"{why}. Their profiles by relative depth and kind follow")
    profiles = compare_profiles(circuits, bins=bins, seed=seed)
    for remark in (*(edges.remarks if edges is not None else ()), *profiles.remarks):
        out.note(f"note: {remark}")
    for axis, reason in profiles.left_out.items():
        out.note(f"note: no {axis}: {reason}")
    document: dict[str, Any] = {
        "circuits": {n: str(folder) for n, folder in zip(names, folders, strict=True)},
        "comparison": None if edges is None else edges.to_dict(),
        "not_compared": why,
        "profiles": profiles.to_dict(),
    }
    if target is not None:
        document["files"] = [str(path) for path in _write(target, edges, profiles)]

    def show(console: Console) -> None:
        if edges is not None:
            _show_pairs(console, edges)
        _show_profiles(console, profiles)
        if target is not None:
            console.print(f"files: {target}")

    out.result(document, show)


def _names(folders: list[Path]) -> list[str]:
    """The folders' own names, or their paths where two have the same."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(folders):
        raise InputError("a folder is named twice; name each circuit once")
    names = [folder.name for folder in resolved]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _require_own(target: Path, overwrite: bool) -> None:
    """Raises unless ``target`` is new or empty, or holds nothing but an earlier comparison."""
    from graphprune.util.files import contents

    if target.exists() and not target.is_dir():
        raise InputError(f"expected a folder to write to, but {target} is a file")
    there = {path.name for path in contents(target)} if target.exists() else set()
    if there and not (overwrite and there <= set(FILES)):
        hint = ", or say --overwrite" if there <= set(FILES) else ""
        raise InputError(f"the folder {target} exists and is not empty; name another{hint}")


def _write(
    target: Path, edges: CircuitComparison | None, profiles: ProfileComparison
) -> list[Path]:
    """All files at once; those of an earlier comparison that do not come again are removed."""
    from graphprune.util.files import atomic_folder, write_text
    from graphprune.util.plain import csv_text

    with atomic_folder(target, whole=True) as folder:
        if edges is not None:
            write_text(folder / FILES[0], csv_text(edges.to_frame()))
            edges.plot(folder / FILES[3])
        write_text(folder / FILES[1], csv_text(profiles.to_frame()))
        write_text(folder / FILES[2], csv_text(profiles.differences_frame()))
        profiles.plot(folder / FILES[4])
        write_text(folder / FILES[5], csv_text(profiles.distances_frame()))
        names = sorted(path.name for path in folder.iterdir())
    return [target / name for name in names]


def _show_pairs(console: Console, edges: CircuitComparison) -> None:
    rows = [pair.to_row() for pair in edges.pairs]
    _show_rows(
        console,
        f"overlap of edges (of {edges.graph.num_edges}), nodes, scores, ranks of scores",
        {
            "circuits": "{first} | {second}",
            "edges": "{edges_first} | {edges_second}",
            "shared": "{shared}",
            "Jaccard": "{jaccard:.3f}",
            "nodes": "{nodes_jaccard:.3f}",
            "scores": "{weighted_jaccard:.3f}",
            "ranks": "{spearman_value:.3f}",
        },
        rows,
    )
    by_chance = {
        head: f"{{{name}_jaccard:.4f}} (p {{{name}_p_adjusted}})" for name, head in CHANCE.items()
    }
    title = "Jaccard overlap by chance (p: at least as much as found; Holm over all pairs)"
    _show_rows(console, title, {"circuits": "{first} | {second}", **by_chance}, rows)


def _show_profiles(console: Console, profiles: ProfileComparison) -> None:
    """The groups that differ most from the graph, for each circuit; then the distances of pairs."""
    rows: list[dict[str, Any]] = []
    for name, profile in profiles.profiles.items():
        clear = [g for g in profile.groups if g.p_adjusted is not None and g.p_adjusted < 0.05]
        clear.sort(key=lambda group: (group.p_adjusted, -abs((group.enrichment or 0.0) - 1)))
        rows += [{"circuit": name, **vars(group)} for group in clear[:6]]
    _show_rows(
        console,
        "where the edges lie: the clearest departures from random edges",
        {
            "circuit": "{circuit}",
            "edges by": "{axis} {group}",
            "kept": "{kept} of {edges}",
            "share": "{share:.3f}",
            "of all edges": "{graph_share:.3f}",
            "times": "{enrichment:.2f}",
            "p": "{p_adjusted}",
        },
        rows,
    )
    distances = profiles.distances_frame().to_dict("records")
    pairs = dict.fromkeys((row["first"], row["second"]) for row in distances)
    for names in pairs:
        _show_rows(
            console,
            f"how differently {' and '.join(names)} choose: 0 alike, 1 nothing in common",
            {
                "edges by": "{axis}",
                "beyond chance": "{corrected:.2f}",
                "95 %": "{low:.2f} to {high:.2f}",
                "p": "{p_adjusted}",
                "distance": "{distance:.3f}",
                "by chance": "{by_chance:.3f}",
                "whole graphs": "{graph_distance:.3f}",
            },
            [row for row in distances if (row["first"], row["second"]) == names],
        )
    for row in distances:
        if isinstance(row.get("absent"), str):
            pair, axis = f"{row['first']} | {row['second']}", row["axis"].replace("_", " ")
            console.print(f"{pair}: no distance by {axis}: {row['absent']}")


def _show_rows(console: Console, title: str, columns: Mapping[str, str], rows: list[Any]) -> None:
    """A table whose cells are formats filled from ``rows``; a dash for what is not known."""
    cells = [[_cell(form, row) for form in columns.values()] for row in rows]
    if cells:
        table(console, title, list(columns), cells, numbers=True)


def _cell(form: str, row: Mapping[str, Any]) -> str:
    values = {name: value for name, value in row.items() if value is not None and value == value}
    if "axis" in values:
        values["axis"] = values["axis"].replace("_", " ")
    for name in row:
        if name.endswith("p_adjusted"):
            p = values.get(name)
            values[name] = "–" if p is None else "<1e-300" if p == 0 else f"{p:.2g}"
    try:
        return form.format(**values)
    except KeyError:
        return "–"
