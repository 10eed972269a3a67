"""``graphprune compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.job import AsJson, Debug, Quiet, cells, job

if TYPE_CHECKING:
    from rich.console import Console

    from graphprune.comparison import CircuitComparison, ProfileComparison
    from graphprune.comparison.overlap_nulls import NullName

FILES = (
    "comparison.csv",
    "profile.csv",
    "profile_differences.csv",
    "overlap.png",
    "profile.png",
    "profile_distances.csv",
)
_CHANCE: dict[NullName, str] = {
    "uniform": "any edges",
    "composition": "same levels and kinds",
    "degrees": "same degrees",
}


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="CIRCUIT_DIR CIRCUIT_DIR...", help="Two or more circuits' folders."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new folder for comparison.csv, profile.csv, profile_differences.csv, "
            "profile_distances.csv, overlap.png and profile.png."
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier comparison in --out.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare circuits: what they share beyond chance, and where their edges lie.

    Circuits of models with other layers or heads are compared by relative depth and kind alone:
    by what they keep of what their graphs offer, beyond chance, within the groups that both have.
    The distance of the whole graphs stands beside it.
    """
    with job(quiet=quiet, as_json=as_json, debug=debug) as now:
        from graphprune.comparison import compare_circuits, compare_profiles
        from graphprune.core.circuit import Circuit
        from graphprune.errors import GraphMismatchError, InputError

        if len(folders) < 2:
            raise InputError("a comparison needs at least two circuits' folders")
        if out is not None:
            _require_own(out, overwrite)
        names = _names(folders)
        circuits = {n: Circuit.load(folder) for n, folder in zip(names, folders, strict=True)}
        edges: CircuitComparison | None = None
        why = None
        try:
            edges = compare_circuits(circuits, strata=strata or None, samples=samples, seed=seed)
        except GraphMismatchError as error:
            why = str(error).partition(". Compare ")[0]
            now.warn(f"{why}. Their profiles by relative depth and kind follow")
        profiles = compare_profiles(circuits, bins=bins, seed=seed)
        for remark in edges.remarks if edges is not None else ():
            now.note(f"note: {remark}")
        for remark in profiles.remarks:
            now.note(f"note: {remark}")
        for axis, reason in profiles.left_out.items():
            now.note(f"note: no {axis}: {reason}")
        document: dict[str, Any] = {
            "circuits": {n: str(folder) for n, folder in zip(names, folders, strict=True)},
            "comparison": None if edges is None else edges.to_dict(),
            "not_compared": why,
            "profiles": profiles.to_dict(),
        }
        if out is not None:
            files = _write(out, edges, profiles)
            document["files"] = [str(path) for path in files]

        def show(console: Console) -> None:
            if edges is not None:
                _show_pairs(console, edges)
            _show_profiles(console, profiles)
            if out is not None:
                console.print(f"files: {out}", markup=False)

        now.result(document, show)


def _names(folders: list[Path]) -> list[str]:
    """The folders' own names, or their paths where two have the same."""
    from graphprune.errors import InputError

    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(folders):
        raise InputError("a folder is named twice; name each circuit once")
    names = [folder.name for folder in resolved]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _require_own(out: Path, overwrite: bool) -> None:
    """Raises unless ``out`` is new or empty, or holds nothing but an earlier comparison."""
    from graphprune.errors import InputError
    from graphprune.util.files import contents

    if out.exists() and not out.is_dir():
        raise InputError(f"expected a folder to write to, but {out} is a file")
    there = {path.name for path in contents(out)} if out.exists() else set()
    if there and not (overwrite and there <= set(FILES)):
        hint = ", or say --overwrite" if there <= set(FILES) else ""
        raise InputError(f"the folder {out} exists and is not empty; name another{hint}")


def _write(out: Path, edges: CircuitComparison | None, profiles: ProfileComparison) -> list[Path]:
    """All files at once; those of an earlier comparison that do not come again are removed."""
    from graphprune.util.files import atomic_folder

    with atomic_folder(out, whole=True) as folder:
        if edges is not None:
            edges.to_frame().to_csv(folder / FILES[0], index=False)
            edges.plot(folder / FILES[3])
        profiles.to_frame().to_csv(folder / FILES[1], index=False)
        profiles.differences_frame().to_csv(folder / FILES[2], index=False)
        profiles.plot(folder / FILES[4])
        profiles.distances_frame().to_csv(folder / FILES[5], index=False)
        made = sorted(path.name for path in folder.iterdir())
    return [out / name for name in made]


def _show_pairs(console: Console, edges: CircuitComparison) -> None:
    shared, chance = [], []
    for pair in edges.pairs:
        name = f"{pair.first} | {pair.second}"
        rank = pair.scores.spearman if pair.scores is not None else None
        shared.append(
            [
                name,
                f"{pair.edges_first} | {pair.edges_second}",
                str(pair.shared),
                f"{pair.jaccard:.3f}",
                f"{pair.nodes.jaccard:.3f}",
                "–" if pair.scores is None else f"{pair.scores.weighted_jaccard:.3f}",
                "–" if rank is None else f"{rank.value:.3f}",
            ]
        )
        told = [pair.nulls[null] for null in _CHANCE]
        chance.append([name, *(f"{n.jaccard:.4f} (p {_p(n.p_adjusted)})" for n in told)])
    columns = ["circuits", "edges", "shared", "Jaccard", "nodes", "scores", "ranks"]
    title = f"overlap of edges (of {edges.graph.num_edges}), nodes, scores, ranks of scores"
    cells(console, title, columns, shared, numbers=True)
    title = "Jaccard overlap by chance (p: at least as much as found; Holm over all pairs)"
    cells(console, title, ["circuits", *_CHANCE.values()], chance, numbers=True)


def _show_profiles(console: Console, profiles: ProfileComparison) -> None:
    """The groups that differ most from the graph, for each circuit; then the distances of pairs."""
    rows, why = [], list[str]()
    for name, profile in profiles.profiles.items():
        told = [group for group in profile.groups if group.p_adjusted is not None]
        told.sort(key=lambda group: (group.p_adjusted, -abs((group.enrichment or 0.0) - 1)))
        for group in told[:6]:
            if group.p_adjusted is not None and group.p_adjusted < 0.05:
                rows.append(
                    [
                        name,
                        f"{group.axis.replace('_', ' ')} {group.group}",
                        f"{group.kept} of {group.edges}",
                        f"{group.share:.3f}",
                        f"{group.graph_share:.3f}",
                        f"{group.enrichment:.2f}",
                        _p(group.p_adjusted),
                    ]
                )
    if rows:
        columns = ["circuit", "edges by", "kept", "share", "of all edges", "times", "p"]
        title = "where the edges lie: the clearest departures from random edges"
        cells(console, title, columns, rows, numbers=True)
    apart = []
    for (first, second), found in profiles.differences.items():
        for axis, whole in found.graph_distance.items():
            row = [f"{first} | {second}", axis.replace("_", " ")]
            if axis in found.axes:
                one = found.axes[axis]
                known = (one.corrected, one.low, one.high)
                beyond, low, high = ("–" if v is None else f"{v:.2f}" for v in known)
                row += [beyond, f"{low} to {high}", _p(one.p_adjusted), f"{one.distance:.3f}",
                        f"{one.by_chance:.3f}"]  # fmt: skip
            else:
                row += ["–"] * 5
                why.append(f"{first} | {second}: no distance by {row[1]}: {found.absent[axis]}")
            apart.append([*row, f"{whole:.3f}"])
    if apart:
        columns = ["circuits", "edges by", "beyond chance", "95 %", "p", "distance", "by chance",
                   "whole graphs"]  # fmt: skip
        title = "how differently the circuits choose: 0 alike, 1 nothing in common"
        cells(console, title, columns, apart, numbers=True)
    for reason in why:
        console.print(reason, markup=False)


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "<1e-300" if value == 0 else f"{value:.2g}"
