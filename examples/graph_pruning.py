"""Pruning an asynchronous recurrent network: spectral scores beside magnitude, Taylor and others.

A network of 64 inputs, 60 recurrent nodes and 10 outputs reads 8 x 8 digits. Every method ranks its
3,540 recurrent edges, the lowest go, and the rest is judged on digits the network never saw, as it
is and after one more epoch with the cut edges gone for good; the dense network gets that epoch too.
Seeds train other networks; intervals are 95 % intervals over seeds. With --reservoir the same is
asked of a reservoir on a real wiring (fetched once), by its memory capacity: that of C. elegans,
whose signs are drawn, or of the fly's optic lobe, whose signs are known.

    python examples/graph_pruning.py --out graph-pruning
    python examples/graph_pruning.py --out graph-pruning --reservoir celegans   # or fly
    python examples/graph_pruning.py --out graph-pruning --quick     # one seed, one epoch
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import graphprune as gp
from graphprune.adapters.gnn.training import accuracy, train_bptt
from graphprune.adapters.reference_models import graph_networks as trained
from graphprune.study import make_case

METHODS = {
    "magnitude": gp.spectral.Magnitude(),
    "Taylor": gp.spectral.Taylor(),
    "EAP": gp.EAP(),
    "preserve (A)": gp.SpectralScores(laplacian="adjacency", goal="preserve"),
    "preserve (both)": gp.SpectralScores(laplacian="both", goal="preserve"),
    "damp (A)": gp.SpectralScores(laplacian="adjacency", goal="damp"),
    "damp (both)": gp.SpectralScores(laplacian="both", goal="damp"),
    "random": gp.Random(),
}
DENSITIES = (0.7, 0.5, 0.3)


def recurrent_only(network, scores: gp.EdgeScores, density: float) -> gp.EdgeMask:
    """The best of the edges between recurrent nodes, and all edges from inputs and to outputs.

    Edges on no cycle have no part in the adjacency matrix's spectrum, so its scores say nothing of
    them.
    """
    ends = torch.cat([network.input_nodes, network.output_nodes])
    outer = torch.isin(network.edge_index, ends).any(0)
    sizes = scores.values.abs()
    ranked = gp.EdgeScores(scores.graph, torch.where(outer, sizes.max() + 1, sizes))
    return ranked.top(int(outer.sum()) + int(density * int((~outer).sum())))


def digits(seeds: int, epochs: int, more: int) -> pd.DataFrame:
    """A row for each seed, method and density: accuracy as it is, and after fine-tuning."""
    x, labels = trained.digits()
    known = len(x) - trained.TEST_DIGITS
    rows = []

    def add(network, seed: int, method: str, density: float) -> None:
        plain = accuracy(network, x[known:], labels[known:], draws=3)
        train_bptt(network, x[:known], labels[:known], epochs=more, lr=2e-3, seed=seed)
        tuned = accuracy(network.eval(), x[known:], labels[known:], draws=3)
        row = {"seed": seed, "method": method, "density": density}
        rows.append({**row, "plain": plain, "tuned": tuned})

    for seed in range(seeds):
        network = trained.argnn_digits(seed=seed, epochs=epochs)
        options = {"weights": seed}
        if epochs == 30:
            case = make_case(
                "argnn-digits", "digits", train=200, test=1, seed=seed, options=options
            )
            task = case.train
        else:
            task = gp.tasks.patterns(x[known:][:40], labels[known:][:40], classes=10)
        model = gp.wrap(network)
        add(copy.deepcopy(network), seed, "dense", 1.0)
        for name, method in METHODS.items():
            if name == "random":
                method = gp.Random(seed=seed)
            scores = method.score(model, task)
            for density in DENSITIES:
                mask = recurrent_only(network, scores, density)
                add(copy.deepcopy(network).keep(mask).compact(), seed, name, density)
        print(f"seed {seed} of {seeds} is done", flush=True)
    return pd.DataFrame(rows)


def memory_capacity(scaled: np.ndarray, seed: int, delays: int = 40, steps: int = 3000) -> float:
    """Sum over delays of the squared correlation between the input and its ridge reconstruction."""
    generator = np.random.default_rng(seed)
    n = len(scaled)
    into = generator.uniform(-0.1, 0.1, n)
    u = generator.uniform(-1, 1, steps)
    states, state = np.zeros((steps, n)), np.zeros(n)
    for t in range(steps):
        state = np.tanh(scaled.T @ state + into * u[t])
        states[t] = state
    washed, half = 200, (steps + 200) // 2
    total = 0.0
    gram = states[washed:half].T @ states[washed:half] + 1e-8 * np.eye(n)
    for delay in range(1, delays + 1):
        readout = np.linalg.solve(gram, states[washed:half].T @ u[washed - delay : half - delay])
        told = states[half:] @ readout
        total += np.corrcoef(told, u[half - delay : steps - delay])[0, 1] ** 2
    return float(total)


def reservoir(wiring: str, seeds: int) -> pd.DataFrame:
    """Memory capacity of a real wiring with half of its connections."""
    from graphprune.tasks import connectomes

    graph, synapses = getattr(connectomes, wiring)()
    strength = synapses.sign().numpy() * np.sqrt(synapses.abs().numpy())
    index = graph.edge_index.numpy()
    rows = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        weights = strength.copy()
        if wiring == "celegans":  # a quarter of its neurons is taken to inhibit
            weights *= np.where(generator.random(graph.num_nodes) < 0.25, -1.0, 1.0)[index[0]]
        whole = np.zeros((graph.num_nodes, graph.num_nodes))
        np.add.at(whole, tuple(index), weights)
        weights *= 0.9 / np.abs(np.linalg.eigvals(whole)).max()  # of the whole graph, once
        goals = {
            "damp": lambda w: gp.spectral.prune(graph, w, "adjacency", goal="damp", size=0.5),
            "preserve": lambda w: gp.spectral.prune(
                graph, w, "adjacency", goal="preserve", size=0.5
            ),
            "magnitude": lambda w: gp.EdgeScores(graph, torch.tensor(np.abs(w)).float()).top(0.5),
            "random": lambda w, g=generator: gp.EdgeScores(
                graph, torch.tensor(g.random(len(w))).float()
            ).top(0.5),
            "dense": lambda w: gp.EdgeMask.full(graph),
        }
        for name, prune in goals.items():
            matrix = np.zeros((graph.num_nodes, graph.num_nodes))
            np.add.at(matrix, tuple(index), weights * prune(weights).kept.numpy())
            rows.append({"seed": seed, "method": name, "capacity": memory_capacity(matrix, seed)})
    return pd.DataFrame(rows)


def told(frame: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """Means with 95 % intervals over seeds."""
    from graphprune.util.numbers import bootstrap_interval

    rows = []
    for key, group in frame.groupby(by, sort=False):
        row = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        for name in columns:
            values = torch.tensor(group[name].to_numpy())
            row[name] = float(values.mean())
            row[f"{name}_low"], row[f"{name}_high"] = bootstrap_interval(values)
        rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Accuracy against density, as it is and fine-tuned."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4), layout="constrained")
    for place, (column, title) in enumerate((("plain", "as it is"), ("tuned", "fine-tuned")), 1):
        axes = figure.add_subplot(1, 2, place)
        dense = table[table.method == "dense"][column].iloc[0]
        axes.axhline(dense, color="0.6", lw=1, label="dense")
        for number, (name, rows) in enumerate(table[table.method != "dense"].groupby("method")):
            gaps = [rows[column] - rows[f"{column}_low"], rows[f"{column}_high"] - rows[column]]
            axes.errorbar(
                rows.density + 0.004 * (number - 3.5), rows[column], yerr=gaps, marker="o", ms=3,
                lw=1, capsize=2, label=name, color=f"C{number}",
            )  # fmt: skip
        axes.set_xlabel("kept recurrent edges")
        axes.set_ylabel("accuracy on unseen digits")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("graph-pruning"), help="a folder")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--reservoir", choices=["celegans", "fly"], help="a real wiring instead of digits"
    )
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.reservoir:
        frame = reservoir(args.reservoir, 1 if args.quick else args.seeds)
        table = told(frame, ["method"], ["capacity"])
        name = f"reservoir-{args.reservoir}"
    else:
        frame = digits(1 if args.quick else args.seeds, 1 if args.quick else 30, 1)
        table = told(frame, ["method", "density"], ["plain", "tuned"])
        name = "digits"
        draw(table, args.out / "digits.png")
    frame.to_csv(args.out / f"{name}.csv", index=False)
    print(table.round(3).to_string(index=False))
    print(f"written to {args.out}: {name}.csv")


if __name__ == "__main__":
    main()
