"""What low precision does to what methods find: a table of methods by policies, and one of ACDC.

Every method is given the same model at a policy's precision, and what it finds is compared with
what it finds in float32: rank correlation of the scores, overlap of the best edges, AUROC for
float32's circuit, and how well the circuit serves the float32 model on other prompts. For edge
pruning a second float32 run with another seed shows what chance alone changes. Seconds are given
where all low-precision products ran on the device's own kernels: emulation shows no time.

The second table is ACDC's: how many of its decisions at the published thresholds are others in low
precision, with the investigated head in float32 (PAHQ) or not, alone or rechecked. AUROC asks how
well the circuits of a sweep rank the edges of float32's circuit.

By default a three-layer GPT-2 learns the indirect-object task first (about a minute).

    python examples/precision_table.py --out precision
    python examples/precision_table.py --out precision --quick    # untrained, few prompts and steps
"""

import argparse
import dataclasses
import time
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import spearmanr
from small_models import random_gpt2, small_tokenizer, train

import graphprune as gp
from graphprune.precision import rtn

TEMPLATES = [0, 1, 15, 16]
CIRCUIT = 0.1  # of all edges
TAUS = [1e-3, 5e-3, 1e-2]  # the published ones
SWEEP = [1e-4, 2e-4, 5e-4, *TAUS, 2e-3, 2e-2, 5e-2, 0.1]
BF16 = gp.PrecisionPolicy({"head": "bf16", "mlp": "bf16"})
DESCENTS = {
    "ACDC": gp.ACDC(),
    "bf16 everywhere": gp.PAHQ(policy=BF16, raised=()),
    "PAHQ": gp.PAHQ(),
    "RTN-Q, 8 bits": gp.RTNQ(),
    "RTN-Q, 4 bits": gp.RTNQ(bits=4),
    "PAHQ, rechecked": gp.PAHQ(recheck="float64"),
    "RTN-Q, 8 bits, rechecked": gp.RTNQ(recheck="float64"),
}
POLICIES = {
    "fp32": gp.PrecisionPolicy(),
    "bf16": BF16,
    "int8 MLPs": gp.PrecisionPolicy({"mlp": "int8"}),
    "PAHQ (fp8, bf16)": gp.PrecisionPolicy({"head": "fp8", "mlp": "bf16"}),
    "fp8": gp.PrecisionPolicy({"head": "fp8", "mlp": "fp8"}),
    "int8 RTN": rtn(8, ["head", "mlp"]),
    "int4 RTN": rtn(4, ["head", "mlp"]),
}


def descents(model: gp.MaskedModel, task: gp.Task) -> pd.DataFrame:
    """A row for each way to run ACDC and each published threshold."""
    rows = []
    truth: dict[float, gp.Result] = {}
    edges = model.graph.num_edges
    for label, method in DESCENTS.items():
        start = time.perf_counter()
        found = method.sweep(model, task, SWEEP)
        seconds = time.perf_counter() - start
        truth = truth or found
        lasts = torch.stack([tau * found[tau].mask.values for tau in SWEEP]).amax(0)
        scores = gp.EdgeScores(model.graph, lasts)
        for tau in TAUS:
            circuit, wanted = found[tau].mask, truth[tau].mask
            changed = int((circuit.values != wanted.values).sum())
            rows.append(
                {
                    "descent": label,
                    "tau": tau,
                    "kept": circuit.num_kept,
                    "changed": changed,
                    "changed_%": 100 * changed / edges,
                    "auroc": gp.auroc(scores, wanted) if 0 < wanted.num_kept < edges else None,
                    "sweep_runs": found[tau].notes["evaluations"],
                    "sweep_rechecks": found[tau].notes["rechecks"],
                    "sweep_seconds": seconds,
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("precision"), help="a folder")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200, help="of edge pruning")
    parser.add_argument("--quick", action="store_true", help="no training, few prompts and steps")
    args = parser.parse_args()

    tokenizer = small_tokenizer()
    module = random_gpt2(len(tokenizer), layers=2 if args.quick else 3)
    if not args.quick:
        lessons = gp.tasks.ioi(tokenizer, n=8000, seed=1, corruption="swap", templates=TEMPLATES)
        print(f"training on {len(lessons)} prompts; loss {train(module, lessons, 400):.3f}")
    model = gp.wrap(module)
    examples = 8 if args.quick else args.examples
    task = gp.tasks.ioi(tokenizer, n=examples, corruption="swap", templates=TEMPLATES)
    find, judge = task.split(0.5)
    pruning = gp.EdgePruning(sparsity=1 - CIRCUIT, steps=8 if args.quick else args.steps)
    methods = {
        "EAP": gp.EAP(),
        "EAP-IG": gp.EAPIG(steps=5),
        "exact patching": gp.ExactPatching(),
        "edge pruning": pruning,
    }

    rows = []
    models = {name: model.at_precision(policy) for name, policy in POLICIES.items()}
    for label, method in methods.items():
        truth: gp.EdgeScores | None = None
        runs = [(name, method) for name in models]
        if method is pruning:
            runs.insert(1, ("fp32", dataclasses.replace(pruning, seed=1)))
        for number, (name, run) in enumerate(runs):
            low = models[name]
            start = time.perf_counter()
            scores = run.score(low, find)
            scores = gp.EdgeScores(scores.graph, scores.values.abs())
            seconds = time.perf_counter() - start
            truth = truth or scores
            circuit, wanted = scores.top(CIRCUIT), truth.top(CIRCUIT)
            report = low.lowered
            emulated = [p for p, native in report.native.items() if not native]
            rows.append(
                {
                    "method": label,
                    "precision": name if number == 0 or run is method else f"{name}, other seed",
                    "spearman": spearmanr(scores.values, truth.values).statistic,
                    "top_overlap": gp.recovery(circuit, wanted).recall,
                    "auroc": gp.auroc(scores, wanted),
                    "kl_fp32_model": gp.evaluate(model, judge, circuit).to_dict()["kl"],
                    "weights_kib": report.weight_bytes / 1024,
                    "emulated": ", ".join(emulated) or "-",
                    "seconds": None if emulated else seconds,
                }
            )
    table = pd.DataFrame(rows)
    print(f"{model.graph.num_edges} edges, {len(find)} prompts to score, {len(judge)} to judge")
    print(table.round(3).to_string(index=False, na_rep="-"))
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "precision.csv", index=False)
    decisions = descents(model, find)
    print(f"ACDC's decisions, {len(SWEEP)} thresholds a sweep; emulated precisions show no time")
    print(decisions.round(3).to_string(index=False, na_rep="-"))
    decisions.to_csv(args.out / "decisions.csv", index=False)
    print(f"written to {args.out}: precision.csv, decisions.csv")


if __name__ == "__main__":
    main()
