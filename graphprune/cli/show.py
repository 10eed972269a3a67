"""``graphprune show``: a circuit as a tree, from the outputs back to the inputs, and its page."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli.command import CommandOutput
from graphprune.cli.options import CircuitFolder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

    from graphprune.core.circuit import Circuit

INPUTS = {
    "q": "a head's queries",
    "k": "a head's keys",
    "v": "a head's values",
    "mlp": "an MLP's input",
    "resid": "the residual stream that the output reads",
}
SOURCES = 6  # edges into a node that a folded tree shows


def show(
    out: CommandOutput,
    folder: CircuitFolder,
    lines: Annotated[
        int,
        typer.Option(min=1, help="About how many edges to show; weaker and farther ones fold."),
    ] = 80,
    everything: Annotated[bool, typer.Option("--all", help="Fold nothing.")] = False,
    open_page: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open",
            help="Open the interactive page (CIRCUIT_DIR/circuit.html, made if it is not there). "
            "By default only on a terminal.",
        ),
    ] = None,
) -> None:
    """Print a circuit as a tree, outputs first, and open its page.

    Under each node stand the edges into it, the strongest first. A node that several others read
    is unfolded once, where it stands nearest to the output; elsewhere an arrow points up to it.
    """
    from graphprune.cli.judged_circuit import saved_circuit
    from graphprune.cli.output import write_export

    circuit = saved_circuit(out, folder)
    out.start()
    drawn = CircuitTree.of(circuit, None if everything else lines)
    if open_page is None:
        open_page = out.stdout.isatty() and sys.stdin.isatty()
    page = (folder if folder.is_dir() else folder.parent) / "circuit.html"
    if open_page:
        if not page.exists():
            write_export(circuit, page)
            out.note(f"made the page {page}")
        if typer.launch(page.resolve().as_uri()) != 0:
            out.note(f"no browser was found; open {page} in one")
    document: dict[str, Any] = {
        "circuit": str(folder),
        "graph_edges": circuit.graph.num_edges,
        "edges": [vars(edge) for edges in drawn.incoming.values() for edge in edges],
        "page": str(page) if page.exists() else None,
    }

    def printed(console: Console) -> None:
        kept, total = circuit.mask.num_kept, circuit.graph.num_edges
        nodes = len(circuit.nodes())
        console.print(f"{folder}: {kept} of {total} edges between {nodes} nodes{_report(circuit)}")
        for tree in drawn.trees:
            console.print(tree)
        if drawn.kinds:
            console.print(f"inputs: {drawn.kinds}")
        hidden = kept - drawn.shown
        if hidden:
            share = drawn.share_shown
            part = "" if share is None else f", {share:.0%} of the score"
            console.print(f"{drawn.shown} of {kept} edges{part}; --all shows the {hidden} others")
        if page.exists() and not open_page:
            console.print(f"to click through: {page}")

    out.result(document, printed)


def _report(circuit: Circuit) -> str:
    report = circuit.report_dict() or {}
    value = report.get("faithfulness")
    return f", faithfulness {value:.2f}" if isinstance(value, float) else ""


@dataclass(frozen=True)
class TreeEdge:
    """A kept edge; ``score`` is ``None`` where the circuit has no scores."""

    source: str
    target: str
    kind: str | None
    score: float | None

    @property
    def strength(self) -> float:
        """The size of its score."""
        return 0.0 if self.score is None else abs(self.score)


@dataclass
class CircuitTree:
    """Trees of a circuit's edges, one for each output (and one for each part that reaches none).

    ``limit`` is about how many edges are shown, ``None`` for all. ``incoming`` holds the kept edges
    into each node, the strongest first.
    """

    incoming: dict[str, list[TreeEdge]]
    limit: int | None
    trees: list[Tree] = field(default_factory=list)
    shown: int = 0
    strength_shown: float = 0.0
    _unfolded: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, circuit: Circuit, limit: int | None) -> CircuitTree:
        """The trees of a circuit."""
        frame = circuit.mask.to_frame()
        frame = frame.assign(
            score=None if circuit.scores is None else circuit.scores.to_frame()["score"]
        )
        incoming: dict[str, list[TreeEdge]] = {}
        for row in frame[frame["kept"] > 0].to_dict("records"):
            edge = TreeEdge(row["source"], row["target"], row["kind"] or None, row["score"])
            incoming.setdefault(edge.target, []).append(edge)
        for edges in incoming.values():
            edges.sort(key=lambda edge: -edge.strength)
        folded = limit is not None and sum(map(len, incoming.values())) > limit
        tree = cls(incoming, limit if folded else None)
        names = [node.name for node in circuit.graph.nodes]
        read = {edge.source for edges in incoming.values() for edge in edges}
        outputs = [names[number] for number in circuit.graph.output_nodes]
        ends = [name for name in incoming if name not in read]
        # Parts of a cyclic graph may have no end: what is still missing starts a tree of its own.
        for root in dict.fromkeys([*outputs, *ends, *incoming]):
            full = tree.limit is not None and tree.shown >= tree.limit
            if root in incoming and root not in tree._unfolded and not full:
                tree._grow(root)
        return tree

    @property
    def share_shown(self) -> float | None:
        """The share of the scores' sizes that the shown edges have; ``None`` without scores."""
        total = sum(edge.strength for edges in self.incoming.values() for edge in edges)
        return self.strength_shown / total if total else None

    @property
    def kinds(self) -> str:
        """The kinds of input that the circuit's edges name, each with what it is."""
        named = {edge.kind for edges in self.incoming.values() for edge in edges if edge.kind}
        return ", ".join(f"<{kind}> {words}" for kind, words in INPUTS.items() if kind in named)

    def _grow(self, root: str) -> None:
        """Adds the tree of ``root``: nodes near it are unfolded before those far from it."""
        from rich.text import Text
        from rich.tree import Tree

        tree = Tree(Text(root, style="bold"))
        self.trees.append(tree)
        self._unfolded.add(root)
        waiting = deque([(root, tree)])
        while waiting:
            node, branch = waiting.popleft()
            edges = self.incoming[node]
            full = self.limit is not None and self.shown >= self.limit
            count = len(edges) if self.limit is None else 0 if full else SOURCES
            for edge in edges[:count]:
                below = branch.add(self._line(edge))
                self.shown += 1
                self.strength_shown += edge.strength
                if edge.source in self.incoming and edge.source not in self._unfolded:
                    self._unfolded.add(edge.source)
                    waiting.append((edge.source, below))
            if edges[count:]:
                branch.add(Text(_folded(edges[count:]), style="dim"))

    def _line(self, edge: TreeEdge) -> Any:
        from rich.text import Text

        text = Text(edge.source, style="bold")
        if edge.kind:
            text.append(f" <{edge.kind}>", style="dim")
        if edge.score is not None:
            text.append(f"  {edge.score:+.3g}", style="green" if edge.score >= 0 else "red")
        if edge.source in self._unfolded:
            text.append("  ↑", style="dim")
        return text


def _folded(edges: list[TreeEdge]) -> str:
    """One line for the edges that are not shown."""
    names = [edge.source for edge in edges[:4]]
    more = ", ..." if len(edges) > 4 else ""
    edge = "edge" if len(edges) == 1 else "edges"
    return f"... {len(edges)} more {edge} from {', '.join(names)}{more}"
