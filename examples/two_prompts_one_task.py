"""One task asked by instruction and by few-shot examples: are the two circuits the same?

After the case study of Edge Pruning (Bhaskar et al. 2024), which asked it of boolean expressions in
CodeLlama-13B: a circuit is found under each style, then each circuit, their intersection and their
union are judged under both, and their overlap is set beside chance. A stopped run goes on where it
was: name the same folder again.

    python examples/two_prompts_one_task.py --out two-prompts
    python examples/two_prompts_one_task.py --out quick --quick     # a tiny random model
"""

import argparse
from pathlib import Path

import pandas as pd
from edge_pruning_language import load

import graphprune as gp

STYLES = ("instruction", "few_shot")


def make_task(name: str, tokenizer, style: str, n: int) -> gp.Task:
    options = {"shots": 3} if style == "few_shot" else {}
    make = {"antonyms": gp.tasks.antonyms, "capitals": gp.tasks.capitals}[name]
    return make(tokenizer, n=n, seed=0, style=style, batch_size=8, **options)


def find(model, task, style: str, out: Path, args) -> gp.Circuit:
    folder = out / style
    if (folder / "circuit.json").exists():
        return gp.Circuit.load(folder)
    warm = gp.EAPIG(steps=5).score(model, task.with_metric("kl"))
    pruning = gp.EdgePruning(
        size=args.edges, steps=args.steps, batch_size=8, warm_start=warm,
        run_dir=out / f"{style}-run", checkpoint_every=10,
    )  # fmt: skip
    fit = pruning.fit(model, task)
    if fit.stopped:
        raise SystemExit(f"{fit.stopped}; the same command goes on from there")
    circuit = gp.Circuit.from_mask(fit.mask, fit.scores, model, task, method=pruning)
    circuit.save(folder)
    return circuit


def show_overlap(circuits: dict[str, gp.Circuit], out: Path) -> None:
    """What the circuits share beyond chance, and where their edges lie; figures and tables too."""
    compared = gp.compare_circuits(circuits)
    compared.to_frame().to_csv(out / "overlap.csv", index=False)
    [pair] = compared.pairs
    print(f"{pair.shared} edges in both; Jaccard overlap {pair.jaccard:.3f}, by chance")
    for name, null in pair.nulls.items():
        print(
            f"  {null.jaccard:.4f} ({name}; {null.low} to {null.high} edges, p {null.p_more:.2g})"
        )
    print(
        f"scores: weighted overlap {pair.scores.weighted_jaccard:.3f}, "
        f"rank correlation of magnitudes {pair.scores.spearman_abs.value:.3f}"
    )
    curve = gp.matched_overlap(*(c.scores for c in circuits.values()), names=STYLES)
    curve.plot(out / "overlap.png")
    profiles = gp.compare_profiles(circuits)
    profiles.to_frame().to_csv(out / "profiles.csv", index=False)
    profiles.plot(out / "profiles.png")
    [difference] = profiles.differences.values()
    apart = ", ".join(
        f"{axis} {found.distance:.3f} (by chance {found.by_chance:.3f}, p {found.p:.2g})"
        for axis, found in difference.axes.items()
    )
    print(f"share of edges that lies elsewhere: {apart}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("two-prompts"), help="a folder")
    parser.add_argument("--task", default="antonyms", choices=["antonyms", "capitals"])
    parser.add_argument("--edges", type=int, default=700)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--examples", type=int, default=80)
    parser.add_argument("--quick", action="store_true", help="a tiny random model, few steps")
    args = parser.parse_args()
    if args.quick:
        args.edges, args.steps, args.examples = 20, 10, 16
    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(args.quick)
    parts = {s: make_task(args.task, tokenizer, s, args.examples).split(0.6) for s in STYLES}
    circuits = {s: find(model, parts[s][0], s, args.out, args) for s in STYLES}
    one, other = (circuits[s].mask for s in STYLES)
    masks = {
        "full model": gp.EdgeMask.full(model.graph),
        **{f"circuit of {style}": circuits[style].mask for style in STYLES},
        "intersection": one & other,
        "union": one | other,
        "only instruction": one - other,
        "nothing": gp.EdgeMask.empty(model.graph),
    }
    found = {style: gp.evaluate_all(model, parts[style][1], masks) for style in STYLES}
    rows = []
    for name, mask in masks.items():
        row = {"edges kept": name, "edges": mask.num_kept}
        for style in STYLES:
            report = found[style][name]
            row[f"accuracy, {style}"] = report["accuracy"]
            row[f"KL, {style}"] = report["kl"]
            row[f"faithfulness, {style}"] = report["faithfulness"]
        rows.append(row)
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "table.csv", index=False)
    print(table.round(3).to_string(index=False))
    show_overlap(circuits, args.out)


if __name__ == "__main__":
    main()
