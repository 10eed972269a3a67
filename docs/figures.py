"""Draws the pictures of the documentation into ``docs/pictures``: ``python docs/figures.py``.

The circuit, the scores and the curve are real results, kept in ``docs/pictures/ioi.json`` with
their source; the other pictures are schemes. Text is drawn as outlines, so that every browser shows
the same.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

PICTURES = Path(__file__).parent / "pictures"
REAL = json.loads((PICTURES / "ioi.json").read_text(encoding="utf-8"))
BLUE, ORANGE, GREY, LIGHT, GREEN = "#0072B2", "#D55E00", "#777777", "#CFCFCF", "#009E73"
FILL = {"input": "#EEEEEE", "logits": "#EEEEEE", "m": "#FFF4D6", "a": "#EAF3FA", "kv": "#F1EAF7"}
RIM = {"input": "#777777", "logits": "#777777", "m": "#C9A227", "a": "#5B8DB8", "kv": "#9A7BB5"}

# Where the nodes of the README's circuit stand: columns from the input to the output.
PLACES = {
    "input": (0.0, 2.0),
    "m0": (1.15, 2.0),
    "a17.h4": (2.4, 3.45),
    "m17": (3.6, 4.25),
    "a20.kv0": (4.75, 3.45),
    "a20.h0": (5.75, 3.45),
    "a23.h0": (7.2, 4.75),
    "a23.h1": (7.2, 4.1),
    "a23.h2": (7.2, 3.45),
    "a23.h7": (7.2, 5.4),
    "a23.kv1": (6.2, 1.75),
    "a23.h3": (7.2, 1.75),
    "a24.kv1": (7.5, 0.45),
    "a24.h4": (8.7, 2.75),
    "a24.h5": (8.75, 0.45),
    "m29": (9.0, 1.5),
    "logits": (10.4, 3.2),
}
WIRES = [
    ("a20.kv0", "a20.h0"),
    ("a23.kv1", "a23.h3"),
    ("a24.kv1", "a24.h4"),
    ("a24.kv1", "a24.h5"),
]


def kind(name: str) -> str:
    """A node's kind, by its name."""
    if name in FILL:
        return name
    return "kv" if ".kv" in name else name[0]


def node(ax: Any, name: str, x: float, y: float, size: float = 10, width: float = 0.78) -> None:
    """A rounded box with a name."""
    box = FancyBboxPatch(
        (x - width / 2, y - 0.19), width, 0.38, boxstyle="round,pad=0,rounding_size=0.1",
        facecolor=FILL.get(kind(name), "white"), edgecolor=RIM.get(kind(name), GREY), zorder=5,
    )  # fmt: skip
    ax.add_patch(box)
    ax.text(x, y - 0.01, name, ha="center", va="center", fontsize=size, zorder=6)


def arrow(ax: Any, start: Any, end: Any, **style: Any) -> None:
    """An arrow between the edges of two boxes."""
    curve = style.pop("curve", 0.0)
    settings = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.4, "color": GREY}
    settings |= {"zorder": 2, "shrinkA": 0, "shrinkB": 0} | style
    ax.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={curve}", **settings))


def page(width: float, height: float, xs: Any, ys: Any) -> tuple[Any, Any]:
    """A figure without axes on white."""
    figure, ax = plt.subplots(figsize=(width, height))
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set_xlim(*xs)
    ax.set_ylim(*ys)
    ax.axis("off")
    return figure, ax


def save(figure: Any, name: str) -> None:
    """Writes the SVG, the same bytes each time."""
    figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def sides(first: str, second: str, half: float = 0.39) -> tuple[Any, Any]:
    """From the right side of one box to the left side of another."""
    (x, y), (u, v) = PLACES[first], PLACES[second]
    if abs(u - x) < 0.6:  # one above the other
        step = 0.19 if v > y else -0.19
        return (x, y + step), (u, v - step)
    return (x + half, y), (u - half, v)


def circuit() -> None:
    """The README's circuit: 25 edges of SmolLM2, widths by score."""
    found = REAL["circuit"]
    figure, ax = page(11, 5.2, (-0.55, 10.95), (-0.62, 5.72))
    strongest = sorted(map(abs, found["edges"].values()))[
        -2
    ]  # the first edge is far above the rest
    for name, score in found["edges"].items():
        source, target = name.split("->")
        target, _, port = target.partition("<")
        share = min(abs(score) / strongest, 1.0) ** 0.5
        start, end = sides(source, target)
        bend = {
            ("m0", "a24.kv1"): -0.12,
            ("a17.h4", "m17"): -0.1,
            ("a23.h3", "logits"): 0.14,
        }.get((source, target), 0.0)
        if name == "m0->a24.kv1<k>":
            bend, start, end = 0.14, (start[0], start[1] - 0.06), (end[0], end[1] - 0.08)
        arrow(
            ax, start, end, curve=bend, linewidth=0.9 + 3.2 * share, alpha=0.85,
            color=BLUE if score > 0 else ORANGE, mutation_scale=9 + 5 * share,
        )  # fmt: skip
        if port:
            shift = -0.16 if name == "m0->a24.kv1<k>" else 0.14
            ax.text(
                end[0] - 0.09, end[1] + shift, port[0], fontsize=8.5, color="#333333",
                ha="right", va="center", zorder=7,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.75},
            )  # fmt: skip
    for source, target in WIRES:
        start, end = sides(source, target)
        arrow(ax, start, end, color=GREY, linestyle=(0, (1.5, 1.5)), linewidth=1.3)
    for name, (x, y) in PLACES.items():
        node(ax, name, x, y)
    low, high = found["interval"]
    ax.text(
        -0.45, 5.5, "Who gets the thing? 25 of SmolLM2's 70,651 edges", fontsize=14, weight="bold",
        va="center",
    )  # fmt: skip
    ax.text(
        -0.45, 5.08, f"faithfulness {found['faithfulness']:.2f} ({low:.2f} to {high:.2f})",
        fontsize=11, color="#333333", va="center",
    )  # fmt: skip
    keys = [
        (BLUE, "-", "positive score"),
        (ORANGE, "-", "negative score"),
        (GREY, (0, (1.5, 1.5)), "key/value head to its query head"),
    ]
    x = -0.45
    for colour, style, label in keys:
        ax.plot([x, x + 0.4], [-0.4, -0.4], color=colour, linestyle=style, linewidth=2.4)
        ax.text(x + 0.5, -0.4, label, fontsize=9.5, va="center", color="#333333")
        x += 0.85 + 0.072 * len(label)
    ax.text(
        x + 0.1, -0.4, "aL.hN: head N of layer L   mL: MLP   q, k, v: which input", fontsize=9.5,
        va="center", color="#333333",
    )  # fmt: skip
    save(figure, "circuit")


def portrait() -> None:
    """The same circuit as ``circuit.plot()`` draws it."""
    from graphprune import Circuit, ComputationalGraph, EdgeMask, EdgeScores, Node
    from graphprune.drawing.figure import plot

    names = sorted(PLACES, key=lambda name: PLACES[name][0])
    words = {"input": "embed", "logits": "output", "m": "mlp", "a": "head", "kv": "kv"}
    nodes = []
    for name in names:
        layer = re.match(r"[am](\d+)", name)
        place = re.search(r"\.\D+(\d+)", name)
        numbers = [int(found[1]) if found else None for found in (layer, place)]
        nodes.append(Node(name, words[kind(name)], *numbers))
    edges = REAL["circuit"]["edges"]
    kinds = ("q", "k", "v", "message")
    ends = [re.split("->|<", name.rstrip(">")) for name in edges]
    graph = ComputationalGraph(
        tuple(nodes),
        torch.tensor([[names.index(end[side]) for end in ends] for side in (0, 1)]),
        torch.tensor([kinds.index((*end, "message")[2]) for end in ends], dtype=torch.uint8),
        kinds,
        ports=("q", "k", "v"),
        fixed_edge_index=torch.tensor([[names.index(wire[s]) for wire in WIRES] for s in (0, 1)]),
    )
    made = Circuit(graph, EdgeMask.full(graph), EdgeScores(graph, torch.tensor([*edges.values()])))
    figure = plot(made, title="SmolLM2 · ioi")
    figure.savefig(PICTURES / "portrait.svg", metadata={"Date": None})


def club() -> None:
    """Zachary's karate club with half of its edges cut at random."""
    import networkx as nx

    from graphprune import Circuit, ComputationalGraph, EdgeMask
    from graphprune.drawing.figure import plot

    members = nx.karate_club_graph()
    graph = ComputationalGraph.from_networkx(nx.relabel_nodes(members.to_directed(), str))
    kept = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.5
    classes = [members.nodes[n]["club"] for n in members]
    mask = EdgeMask(graph, kept.float())
    figure = plot(Circuit(graph, mask), title="Karate club", node_colours=classes)
    figure.savefig(PICTURES / "club.svg", metadata={"Date": None})


# ------------------------------------------------------------------ the concepts

SMALL = {
    "input": (0.0, 1.0),
    "a0.h0": (1.4, 1.7),
    "a0.h1": (1.4, 0.3),
    "m0": (2.8, 1.0),
    "a1.h0": (4.2, 1.7),
    "logits": (5.6, 1.0),
}
LINKS = [
    ("input", "a0.h0"), ("input", "a0.h1"), ("input", "m0"), ("a0.h0", "m0"), ("a0.h1", "m0"),
    ("m0", "a1.h0"), ("a0.h0", "a1.h0"), ("m0", "logits"), ("a1.h0", "logits"), ("a0.h1", "logits"),
]  # fmt: skip
KEPT = {("input", "a0.h0"), ("a0.h0", "m0"), ("m0", "a1.h0"), ("a1.h0", "logits")}


def small(ax: Any, cut: Any = (), notes: Any = None, drop: Any = ()) -> None:
    """The six-node graph; edges in ``cut`` are dashed, in ``drop`` orange."""
    for source, target in LINKS:
        (x, y), (u, v) = SMALL[source], SMALL[target]
        style: dict[str, Any] = {"color": BLUE, "linewidth": 1.9}
        if (source, target) in cut:
            style = {"color": LIGHT, "linewidth": 1.4, "linestyle": (0, (3, 2)), "zorder": 1}
        if (source, target) in drop:
            style = {"color": ORANGE, "linewidth": 1.9}
        arrow(ax, (x + 0.42, y), (u - 0.42, v), **style)
        if notes is not None:
            ax.text(
                (x + u) / 2, (y + v) / 2, notes(source, target), fontsize=9, ha="center",
                va="center", zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
    for name, (x, y) in SMALL.items():
        node(ax, name, x, y, width=0.84)


def graph() -> None:
    """Nodes and edges."""
    figure, ax = page(6.6, 2.5, (-0.6, 6.2), (-0.35, 2.25))
    small(ax)
    ax.annotate(
        "a node", (1.4, 1.92), (2.35, 2.1), fontsize=9.5, color=GREY, va="center",
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.8},
    )  # fmt: skip
    ax.annotate(
        "an edge: a0.h1->logits", (4.2, 0.63), (4.15, 0.05), fontsize=9.5, color=GREY, va="center",
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.8},
    )  # fmt: skip
    save(figure, "graph")


def mask() -> None:
    """Ones and zeros on the edges."""
    figure, ax = page(6.6, 2.3, (-0.6, 6.2), (0.0, 2.1))
    cut = [link for link in LINKS if link not in KEPT]
    small(ax, cut, lambda a, b: "1" if (a, b) in KEPT else "0")
    save(figure, "mask")


def ablation() -> None:
    """What a reader gets over a kept and over a cut edge."""
    figure, ax = page(6.6, 2.3, (-0.1, 7.0), (-0.2, 2.3))
    for y, title, text in (
        (1.65, "clean", "… Mary and John …  John gave a book to"),
        (0.35, "corrupted", "… Mary and John …  Mary gave a book to"),
    ):
        ax.text(0.0, y + 0.26, title, fontsize=9, color=GREY, va="center")
        ax.text(0.0, y, text, fontsize=8.6, va="center")
        node(ax, "a0.h1", 4.0, y, width=0.84)
        arrow(ax, (3.1, y), (3.56, y), color=LIGHT)
    node(ax, "m0", 6.3, 1.0, width=0.84)
    arrow(ax, (4.44, 1.65), (5.86, 1.05), color=BLUE, linewidth=2)
    arrow(ax, (4.44, 0.35), (5.86, 0.95), color=ORANGE, linewidth=2, linestyle=(0, (3, 2)))
    ax.text(5.15, 1.66, "mask 1: this message", fontsize=9, color=BLUE, ha="left", va="center")
    ax.text(5.15, 0.34, "mask 0: that one", fontsize=9, color=ORANGE, ha="left", va="center")
    save(figure, "ablation")


def scores() -> None:
    """The forty largest scores of a real ranking, and a cut."""
    figure, ax = plt.subplots(figsize=(6.6, 2.4))
    values = REAL["largest_scores"]
    ax.bar(range(len(values)), values, color=[BLUE] * 20 + [LIGHT] * 20, width=0.8)
    ax.axvline(19.5, color=ORANGE, linewidth=1.4, linestyle=(0, (3, 2)))
    ax.text(19.9, 8.4, "scores.top(20) keeps these", fontsize=9.5, color=ORANGE, ha="left")
    ax.annotate("", (12.5, 8.0), (19.4, 8.0), arrowprops={"arrowstyle": "->", "color": ORANGE})
    ax.text(0.7, 9.0, "input->m0", fontsize=8.5)
    ax.text(1.6, 4.1, "a23.h3->logits", fontsize=8.5)
    ax.set_xlabel("the forty strongest of 70,651 edges (SmolLM2, IOI, EAP-IG)", fontsize=9.5)
    ax.set_ylabel("|score|", fontsize=9.5)
    ax.set_xticks([])
    ax.set_xlim(-0.8, 40)
    ax.tick_params(labelsize=8.5)
    ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout(pad=0.5)
    save(figure, "scores")


def size() -> None:
    """Dead ends are kept edges that lie on no path."""
    figure, ax = page(6.6, 2.7, (-0.6, 6.2), (-0.45, 2.1))
    dead = {("a0.h1", "m0"), ("a0.h0", "a1.h0")}
    path = {("input", "m0"), ("m0", "logits")}
    cut = [link for link in LINKS if link not in dead | path]
    small(ax, cut, drop=dead)
    ax.text(
        -0.4, -0.27, "blue: kept, on a path from input to logits   orange: kept, a dead end   "
        "dashed: cut", fontsize=9, va="center", color="#333333",
    )  # fmt: skip
    save(figure, "size")


def faithfulness() -> None:
    """A scale with the demo's figures."""
    figure, ax = page(6.6, 1.75, (-0.2, 1.24), (-0.75, 0.9))
    ax.plot([0, 1.0], [0, 0], color=GREY, linewidth=2, zorder=1)
    ax.plot([1.0, 1.16], [0, 0], color=GREY, linewidth=2, linestyle=(0, (2, 2)), zorder=1)
    ax.plot([0.856, 0.998], [0, 0], color=BLUE, linewidth=8, alpha=0.35, solid_capstyle="butt")
    for x, colour in ((0, GREY), (0.931, BLUE), (1, GREY)):
        ax.plot([x], [0], marker="o", markersize=9, color=colour, zorder=3)
    ax.text(0, 0.32, "0", ha="center", fontsize=11)
    ax.text(
        0, -0.42, "all edges ablated\nlogit difference −4.22", ha="center", va="center", fontsize=9
    )
    ax.text(0.90, 0.32, "0.93", ha="center", fontsize=11, color=BLUE)
    ax.text(
        0.76, -0.42, "the circuit, 644 edges\nlogit difference 4.28", ha="center", va="center",
        fontsize=9, color=BLUE,
    )  # fmt: skip
    ax.text(1.0, 0.32, "1", ha="center", fontsize=11)
    ax.text(1.07, -0.42, "full model\nlogit difference 4.92", ha="center", va="center", fontsize=9)
    ax.annotate(
        "", (0.925, -0.06), (0.82, -0.25), arrowprops={"arrowstyle": "-", "color": BLUE, "lw": 0.8}
    )
    ax.text(0.46, 0.62, "bar: 95 % interval over 32 prompts", ha="center", fontsize=8.5, color=GREY)
    save(figure, "faithfulness")


def cpr_cmd() -> None:
    """A real curve, with what CPR and CMD measure."""
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.9), sharey=True)
    x, f = zip(*REAL["curve"]["EAP-IG"], strict=True)
    u, g = zip(*REAL["curve"]["random"], strict=True)
    for ax, title in zip(axes, ("CPR: area below f", "CMD: area between f and 1"), strict=True):
        ax.plot(x, f, color=BLUE, marker="o", markersize=4, label="EAP-IG", zorder=3)
        ax.plot(u, g, color=GREY, marker=".", linewidth=1, label="random", zorder=2)
        ax.axhline(1, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)))
        ax.set_title(title, fontsize=10.5)
        ax.set_xlabel("share of edges kept", fontsize=9.5)
        ax.set_ylim(-0.06, 1.12)
        ax.set_xlim(-0.02, 1.02)
        ax.tick_params(labelsize=8.5)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].fill_between(x, 0, f, color=BLUE, alpha=0.18)
    axes[1].fill_between(x, f, 1, color=ORANGE, alpha=0.35)
    axes[0].set_ylabel("faithfulness f", fontsize=9.5)
    axes[1].legend(fontsize=8.5, frameon=False, loc=(0.1, 0.3))
    figure.tight_layout(pad=0.6)
    save(figure, "cpr_cmd")


def main() -> None:
    """Draws all of them."""
    settings = {"svg.hashsalt": "graphprune", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    with mpl.rc_context(settings):
        for draw in (
            circuit,
            portrait,
            club,
            graph,
            mask,
            ablation,
            scores,
            size,
            faithfulness,
            cpr_cmd,
        ):
            draw()


if __name__ == "__main__":
    main()
