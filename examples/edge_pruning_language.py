"""Edge pruning against attribution on language tasks: held-out KL and accuracy by size.

One run of edge pruning for each task gives a circuit of every size; EAP, EAP-IG and random rankings
are cut to the same sizes. All are judged on the same prompts, which none of them saw, and compared
prompt by prompt. Every piece is written as soon as it is done, and a run that was
stopped goes on where it was: name the same folder again. SmolLM2 takes about half an hour a task
on one core.

    python examples/edge_pruning_language.py --out results
    python examples/edge_pruning_language.py --out results --tasks ioi --steps 500
    python examples/edge_pruning_language.py --out quick --quick     # a tiny random model
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from small_models import random_llama, small_tokenizer

import graphprune as gp

SIZES = (200, 400, 800, 1600, 3200, 6400, 12800)
TASKS = {
    "ioi": lambda tok, n: gp.tasks.ioi(tok, n=n, seed=0),
    "greater_than": lambda tok, n: gp.tasks.greater_than(tok, n=n, seed=0),
    "gendered_pronoun": lambda tok, n: gp.tasks.gendered_pronoun(tok, n=n, seed=0),
    "docstring": lambda tok, n: gp.tasks.docstring(tok, n=n, seed=0),
}


def load(quick: bool):
    if quick:
        tokenizer = small_tokenizer()
        return gp.wrap(random_llama(len(tokenizer))), tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = gp.fetch("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return gp.wrap(AutoModelForCausalLM.from_pretrained(folder)), tokenizer


def judged(
    model, task, name: str, method: str, masks: dict[int, gp.EdgeMask], out: Path
) -> pd.DataFrame:
    """A row for each size; the KL on every prompt goes to a file of its own."""
    reports = gp.evaluate_all(model, task, {str(size): mask for size, mask in masks.items()})
    each = pd.DataFrame({size: r.examples["kl"].numpy() for size, r in reports.items()})
    each.to_csv(out / "prompts" / f"{name}-{method.replace(' ', '_')}.csv", index=False)
    rows = []
    for size, report in reports.items():
        low, high = report.interval("kl")
        rows.append(
            {
                "task": name,
                "method": method,
                "edges": int(size),
                "kept": int(report["n_edges"]),
                "kl": report["kl"],
                "kl_low": low,
                "kl_high": high,
                "accuracy": report["accuracy"],
                "exact_match": report["exact_match"],
                "faithfulness": report["faithfulness"],
            }
        )
    return pd.DataFrame(rows)


def ranked(scores: gp.EdgeScores, sizes) -> dict[int, gp.EdgeMask]:
    """The better cut for attribution: by size of the score, dead ends pruned, as MIB does."""
    return {size: scores.top(size).prune_dead_ends() for size in sizes}


def run_task(model, tokenizer, name: str, out: Path, args) -> None:
    sizes = [s for s in SIZES if s < model.graph.num_edges] if not args.quick else [10, 20, 40]
    n = (16 if args.quick else args.examples) + (16 if args.quick else args.held_out)
    task = TASKS[name](tokenizer, n)
    find, judge = task.split(16 if args.quick else args.examples)
    on_kl = find.with_metric("kl")
    methods = {
        "random": lambda: gp.Random(seed=0).score(model, find),
        "EAP": lambda: gp.EAP(batch_size=8).score(model, find),
        "EAP-IG(5)": lambda: gp.EAPIG(steps=5, batch_size=8).score(model, find),
        "EAP-IG(5) on KL": lambda: gp.EAPIG(steps=5, batch_size=8).score(model, on_kl),
    }
    warm = None
    for method, score in methods.items():
        file = out / f"{name}-{method.replace(' ', '_')}"
        if not (file / "circuit.json").exists():
            start = time.perf_counter()
            scores = score()
            frame = judged(model, judge, name, method, ranked(scores, sizes), out)
            frame["seconds"] = time.perf_counter() - start
            frame.to_csv(file.with_suffix(".csv"), index=False)
            gp.Circuit.from_mask(scores.top(sizes[0]), scores=scores).save(file)
            print(frame.round(3).to_string(index=False), flush=True)
        if method == "EAP-IG(5) on KL":
            warm = gp.Circuit.load(file).scores
    file = out / f"{name}-edge_pruning"
    if not file.with_suffix(".csv").exists():
        start = time.perf_counter()
        pruning = gp.EdgePruning(
            size=sizes[0],
            path=tuple(sizes[1:]),
            steps=20 if args.quick else args.steps,
            batch_size=8,
            warm_start=warm,
            run_dir=out / f"{name}-run",
            checkpoint_every=10,
        )
        fit = pruning.fit(model, find)
        if fit.stopped:
            raise SystemExit(f"{fit.stopped}; the same command goes on from there")
        seconds = time.perf_counter() - start
        frame = judged(
            model, judge, name, "edge pruning", {sizes[0]: fit.mask, **fit.circuits}, out
        )
        frame["seconds"] = seconds
        frame.to_csv(file.with_suffix(".csv"), index=False)
        print(frame.round(3).to_string(index=False), flush=True)


def edges_needed(out: Path, sizes, draws: int = 10_000) -> pd.DataFrame:
    """For each edge-pruning circuit: the size at which attribution catches up with it.

    ``reached`` is the smallest size at which the best of the three attributions has at most its KL;
    ``matched`` the smallest at which one of them is no longer clearly worse, that is, the 95 %
    bootstrap interval of the mean difference, prompt by prompt, holds 0. NaN: at no size measured.
    """
    rows = []
    for file in sorted((out / "prompts").glob("*-edge_pruning.csv")):
        name = file.stem.removesuffix("-edge_pruning")
        ours = pd.read_csv(file)
        theirs = [pd.read_csv(f) for f in sorted(file.parent.glob(f"{name}-EAP*.csv"))]
        pick = np.random.default_rng(0).integers(len(ours), size=(draws, len(ours)))
        for size in map(str, sizes):
            reached = matched = float("nan")
            for other in reversed([str(s) for s in sizes]):
                gaps = [(t[other] - ours[size]).to_numpy() for t in theirs]
                if min(gap.mean() for gap in gaps) <= 0:
                    reached = int(other)
                if min(np.quantile(gap[pick].mean(1), 0.025) for gap in gaps) <= 0:
                    matched = int(other)
            row = {"task": name, "edges": int(size), "kl": ours[size].mean()}
            row |= {"reached": reached, "matched": matched, "ratio": matched / int(size)}
            rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("edge-pruning"), help="a folder")
    parser.add_argument("--tasks", default="ioi,greater_than,gendered_pronoun")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--examples", type=int, default=384, help="prompts to find circuits on")
    parser.add_argument("--held-out", type=int, default=400, help="prompts to judge them on")
    parser.add_argument("--quick", action="store_true", help="a tiny random model, few steps")
    args = parser.parse_args()
    (args.out / "prompts").mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(args.quick)
    for name in args.tasks.split(",") if not args.quick else ["ioi"]:
        run_task(model, tokenizer, name, args.out, args)
    found = sorted(args.out.glob("*.csv"))
    parts = [pd.read_csv(f) for f in found if f.stem not in ("table", "edges_needed")]
    table = pd.concat(parts, ignore_index=True)
    table.to_csv(args.out / "table.csv", index=False)
    compared = edges_needed(args.out, sorted(set(table.edges)))
    compared.to_csv(args.out / "edges_needed.csv", index=False)
    print(compared.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
