"""The tables of docs/benchmarks.md from a leaderboard's folder, or from several.

    graphprune study examples/leaderboard.yaml --out leaderboard
    python docs/leaderboard_tables.py leaderboard --csv leaderboard.csv

A study run in parts has a folder for each; a table that ``--csv`` wrote stands for one. Of a row
that several have, the last counts.

Prints Markdown: first every method that is no row of the grid, with the mean rank of its CMD among
them; then the grid of mask optimisers by loss, passes and start, as CMD averaged over the systems
that all of its rows have. ``--csv`` writes a few columns of ``summary.csv``.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pandas as pd

GRID = re.compile(r"(?P<method>.+), (?P<loss>\w+), (?P<passes>60|600)(?P<warm>, warm)?$")
COLUMNS = [
    "system",
    "task",
    "method",
    "seeds",
    "passes",
    "time_in_passes",
    "cmd_weighted",
    "log_area",
]
MEASURED = ["cmd", "cpr"]
AT_SIZES = ["kl", "top1_accuracy", "top1_match"]


def main() -> None:
    """Reads the command line and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", type=Path, nargs="+", help="folders of studies, or tables of them")
    parser.add_argument("--csv", type=Path, help="where the small table goes")
    given = parser.parse_args()
    tables = [pd.read_csv(part / "summary.csv" if part.is_dir() else part) for part in given.parts]
    table = pd.concat(tables).dropna(subset="cmd")
    table = table.drop_duplicates(["system", "task", "method"], keep="last").copy()
    if given.csv is not None:
        sizes = sorted(name.removeprefix("kept@") for name in table if name.startswith("kept@"))
        chosen = [f"{name}@{size}" for name in ["kept", *AT_SIZES] for size in sizes]
        limits = [f"{name}{end}" for name in MEASURED for end in ("", "_low", "_high")]
        names = [name for name in [*COLUMNS, *limits, *chosen] if name in table]
        table[names].to_csv(given.csv, index=False, float_format="%.3g")
    table["case"] = [
        task if system == "programs" else system
        for system, task in zip(table["system"], table["task"], strict=True)
    ]
    in_grid = table["method"].str.fullmatch(GRID.pattern)
    print(methods(table[~in_grid]), "\n")
    print(grid(table[in_grid]))


def methods(table: pd.DataFrame) -> str:
    """One row a method: CMD / CPR by system, its mean rank by CMD, and the passes it takes.

    Methods that some systems lack have no mean rank and stand below, by their mean CMD.
    """
    cases = list(dict.fromkeys(table["case"]))
    by_method = table.groupby("method")
    everywhere = by_method["case"].nunique() == len(cases)
    common = table[table["method"].map(everywhere)]
    rank = common.groupby("case")["cmd"].rank().groupby(common["method"]).mean()
    order = pd.DataFrame({"rank": rank, "cmd": by_method["cmd"].mean()}).sort_values(
        ["rank", "cmd"], na_position="last"
    )
    cells = {(row.method, row.case): f"{row.cmd:.2f} / {row.cpr:.2f}" for row in table.itertuples()}
    passes = by_method["passes"].median()
    lines = ["| | passes | " + " | ".join(cases) + " | mean CMD rank |"]
    lines.append("|---" * (len(cases) + 3) + "|")
    for method in order.index:
        row = [cells.get((method, case), "–") for case in cases]
        count = "–" if pd.isna(passes[method]) else f"{passes[method]:,.0f}"
        mean = "–" if pd.isna(order["rank"][method]) else f"{order['rank'][method]:.1f}"
        lines.append(f"| {method} | {count} | " + " | ".join(row) + f" | {mean} |")
    return "\n".join(lines)


def grid(table: pd.DataFrame) -> str:
    """One row an optimiser, passes and start; one column a loss; mean CMD over common systems."""
    parts = table["method"].str.extract(GRID.pattern)
    rows = table[["case", "cmd"]].assign(
        row=[
            f"{method}, {passes} passes, {'warm' if isinstance(warm, str) else 'cold'}"
            for method, passes, warm in zip(
                parts["method"], parts["passes"], parts["warm"], strict=True
            )
        ],
        loss=parts["loss"],
    )
    wide = rows.pivot_table(index=["row", "loss"], columns="case", values="cmd").dropna(axis=1)
    mean = wide.mean(axis=1).unstack("loss")
    lines = [f"Mean CMD over {', '.join(wide.columns)}.", ""]
    lines.append("| | " + " | ".join(f"`{loss}`" for loss in mean) + " |")
    lines.append("|---" * (len(mean.columns) + 1) + "|")
    for row, values in mean.iterrows():
        shown = ["–" if pd.isna(value) else f"{value:.3f}" for value in values]
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
