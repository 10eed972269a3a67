"""One question asked of four architectures: which cheap features tell the edges that matter?

Runs the study of ``cross_architecture.yaml`` (what is left of it) and reads its rankings. Each is
held against the effects of removing single edges, found on *other* prompts: Spearman's correlation
of sizes, and the AUROC for the tenth with the largest effects. Intervals are over models, each a
mean over draws of prompts. Writes ``table.csv`` and ``cross_architecture.png``.

    python examples/cross_architecture.py --out cross
    python examples/cross_architecture.py --out cross --quick    # two tiny networks, some seconds
"""

import argparse
from dataclasses import dataclass
from itertools import groupby, permutations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import yaml
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path
from scipy.stats import rankdata, t

import graphprune as gp
from graphprune.study.case_contents import open_case
from graphprune.study.saved_rankings import SavedRankings

KINDS = {
    "trained-gpt2": "transformers",
    "tracr": "compiled programs",
    "argnn-digits": "recurrent networks\n(digits)",
    "gnn-reachability": "graph networks\n(reachability)",
}
TRUTHS = {"exact effect": "black", "mask gradient": "#E69F00"}
SHOWN = [
    "exact effect", "EAP", "message norm", "message change", "early", "degree",
    "rotation", "rotation beyond norm", "rotation (both)", "rotation (both) beyond norm",
    "random", "shuffled",
]  # fmt: skip
CURVES = {
    "exact effect": "black", "EAP": "#0072B2", "message norm": "#D55E00",
    "rotation": "#CC79A7", "early": "#009E73", "random": "#999999",
}  # fmt: skip


class Early(gp.Scorer):
    """Early first: by the longest path to the writer; if all nodes are inputs, by hops from 0."""

    def score(self, model: gp.MaskedModel, task: gp.Task) -> gp.EdgeScores:
        graph, depth = model.graph, model.graph.depth
        if len(graph.input_nodes) == graph.num_nodes:
            shape = (graph.num_nodes, graph.num_nodes)
            wires = csr_array((np.ones(graph.num_edges), graph.edge_index.numpy()), shape=shape)
            depth = shortest_path(wires, unweighted=True, indices=0).clip(max=graph.num_nodes)
        values = torch.from_numpy(depth.max() - depth)[graph.edge_index[0]]
        return gp.EdgeScores(graph, values.float(), method=self.label)


class Degree(gp.Scorer):
    """How many edges the two ends of an edge have."""

    def score(self, model: gp.MaskedModel, task: gp.Task) -> gp.EdgeScores:
        ends = model.graph.edge_index
        degree = torch.bincount(ends.flatten(), minlength=model.graph.num_nodes)
        return gp.EdgeScores(model.graph, degree[ends].sum(0).float(), method=self.label)


@dataclass(frozen=True, kw_only=True)
class Rotation(gp.Scorer):
    """How much an edge's removal changes the imaginary parts of the Laplacian's spectrum.

    Weights are message norms. A graph without cycles is closed from its outputs to its inputs.
    """

    laplacian: str = "out"

    def score(self, model: gp.MaskedModel, task: gp.Task) -> gp.EdgeScores:
        graph = model.graph
        back = tuple((o, i) for o in graph.output_nodes for i in graph.input_nodes)
        settings = {"edge_weights": "message_norm", "feedback": back if graph.is_acyclic else ()}
        method = gp.SpectralScores(goal="preserve", laplacian=self.laplacian, **settings)
        return method.score(model, task)


def sizes(scores: gp.EdgeScores) -> np.ndarray:
    """Ranks of ``|score|``; what rounding does not tell from 0 is 0."""
    values = scores.values.abs().double().numpy()
    return rankdata(np.where(values <= scores.noise, 0.0, values))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, of ranks Spearman's; 0 where one is constant and so predicts nothing."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0


def predictions(rankings: list[dict[str, gp.EdgeScores]], lots: np.random.Generator):
    """Of one model (feature, truth, figure, value) for each pair of different draws of prompts."""
    for one, other in permutations(rankings, 2):
        ranks = {name: sizes(scores) for name, scores in one.items()}
        for against in TRUTHS:
            truth, effects, graph = other[against], sizes(other[against]), other[against].graph
            tenth = truth.top(max(1, graph.num_edges // 10)).values
            largest = gp.EdgeMask(graph, tenth * (truth.values.abs() > truth.noise))
            for name, values in (ranks | {"shuffled": lots.permutation(ranks[against])}).items():
                scores, rho = torch.from_numpy(values).float(), correlation(values, effects)
                yield name, against, "rho", rho
                yield name, against, "auroc", gp.auroc(gp.EdgeScores(graph, scores), largest)
                if name.startswith("rotation"):  # the partial correlation
                    shared = [correlation(own, ranks["message norm"]) for own in (values, effects)]
                    rest = max(np.sqrt(np.prod(1 - np.square(shared))), 1e-6)
                    yield f"{name} beyond norm", against, "rho", (rho - np.prod(shared)) / rest


def falls(case, rankings: dict[str, gp.EdgeScores], densities, lots: np.random.Generator):
    """KL of circuits of exact counts without dead ends, as a share of that without any edge."""
    graph = case.model.graph
    masks = {("none", 0.0): gp.EdgeMask(graph, torch.zeros(graph.num_edges))}
    for name in CURVES:
        ranks = sizes(rankings[name]) + 0.4 * lots.random(graph.num_edges)  # ties by lot
        ranked = gp.EdgeScores(graph, torch.from_numpy(ranks).float())
        masks |= {(name, d): ranked.connected(d) for d in densities if int(d * graph.num_edges)}
    reports = gp.evaluate_all(case.model, case.test, masks)
    empty = reports.pop(("none", 0.0))
    kl = "output_kl" if "output_kl" in empty.values else "kl"  # compiled programs have their own
    for (name, density), report in reports.items():
        yield name, density, "kl", report[kl] / empty[kl]


def measured(results: gp.study.StudyResults, out: Path) -> pd.DataFrame:
    """Every value by kind, model, ranking, what it is held against, and figure."""
    rows, lots = [], np.random.default_rng(0)
    done = [job for job, record in results.records if record["state"] == "done"]
    for (system, task), jobs in groupby(done, key=lambda job: (job.system, job.task)):
        of_model, rankings = (KINDS.get(system.kind, system.kind), f"{system.name} {task}"), []
        for _, same_prompts in groupby(jobs, key=lambda job: job.seed):
            listed = list(same_prompts)
            case, contents = open_case(listed[0].source, None)
            rankings.append({})
            for job in listed:
                saved = SavedRankings(out, contents.of_case(), job.method.code)
                scores, _ = saved.find(job.method.build(job.seed), case.model.graph)
                rankings[-1][job.method.name] = scores
            rows += [(*of_model, *row) for row in falls(case, rankings[-1], job.densities, lots)]
        rows += [(*of_model, *row) for row in predictions(rankings, lots)]
    return pd.DataFrame(rows, columns=["kind", "model", "ranking", "against", "figure", "value"])


def summary(data: pd.DataFrame) -> pd.DataFrame:
    """Means over models, Student's 95 % intervals, the smallest mean seen 80 % of the time."""
    keys, rows = ["kind", "ranking", "against", "figure"], []
    for key, group in data.groupby(keys, sort=False):
        values = group.groupby("model")["value"].mean()
        half, power = t.ppf([0.975, 0.8], len(values) - 1) * values.sem()
        limits = (-1.0 if key[-1] == "rho" else 0.0, np.inf if key[-1] == "kl" else 1.0)
        interval = np.clip([values.mean() - half, values.mean() + half], *limits)
        rows.append((*key, values.mean(), *interval, len(values), half + power))
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "models", "smallest"])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Above how KL falls with density, below what predicts the effects of edges."""
    kinds, places = list(dict.fromkeys(table["kind"])), np.arange(len(SHOWN))
    figure, axes = plt.subplots(2, len(kinds), figsize=(11, 5.6), sharey="row", squeeze=False)
    table = table.assign(below=table["mean"] - table["low"], above=table["high"] - table["mean"])
    style = {"marker": "o", "ms": 2.8, "elinewidth": 0.8}
    for kind, fall, rank in zip(kinds, *axes, strict=True):
        parts = dict(list(table[table["kind"] == kind].groupby(["figure", "ranking"])))
        for shift, (name, colour) in enumerate(CURVES.items()):
            own = parts["kl", name]
            x, bars = np.arange(len(own)) + 0.06 * shift, own[["below", "above"]].T
            fall.errorbar(x, own["mean"], bars, color=colour, label=name, lw=1.1, **style)
        for shift, (against, colour) in enumerate(TRUTHS.items()):
            own = pd.concat(parts["rho", name] for name in SHOWN).query("against == @against")
            y, bars = places + 0.28 * shift - 0.14, own[["below", "above"]].T
            rank.errorbar(own["mean"], y, xerr=bars, color=colour, label=against, lw=0, **style)
        fall.set_xticks(range(len(x)), parts["kl", name]["against"])
        fall.set(title=kind, xlabel="share of edges kept", ylim=(-0.05, 1.4))
        rank.axvline(0, color="#999999", lw=0.6)
        rank.set(xlim=(-1.05, 1.05), xlabel="rank correlation", yticks=places, yticklabels=SHOWN)
    rank.invert_yaxis()
    axes[0, 0].set_ylabel("KL as a share of\nthat without edges")
    for ax in axes[:, -1]:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("cross"), help="the study's folder")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--quick", action="store_true", help="two tiny networks in place of all")
    args = parser.parse_args()
    plan = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    if args.quick:
        karate = {"kind": "gcn-karate", "tasks": ["communities"]}
        plan["systems"] = {f"karate {w}": {**karate, "weights": w} for w in (0, 1)}
        plan |= {"seeds": [0, 1], "densities": [0.2, 0.5], "train": 8, "test": 8}
    results = gp.Study.from_dict(plan).run(args.out, jobs=args.jobs)
    for job, why in results.failures():
        print(f"failed: {job.label}: {why}")
    table = summary(measured(results, args.out))
    table.to_csv(args.out / "table.csv", index=False)
    draw(table, args.out / "cross_architecture.png")
    shown = table[(table["figure"] == "rho") & (table["against"] == "exact effect")]
    print(
        shown.pivot(index="ranking", columns="kind", values="mean").loc[SHOWN].round(2).to_string()
    )


if __name__ == "__main__":
    main()
