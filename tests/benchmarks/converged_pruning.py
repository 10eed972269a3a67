"""Edge pruning run to its end, our form beside the published one, at equal edges.

A four-layer GPT-2 that learned the IOI task (479 edges; 532 where token and position embeddings are
two nodes, as in the release); 5, 10, 20 and 30 % of its edges. Both forms get 3,000 steps of 32
prompts, as in the paper. ``variant="paper"`` is the released trainer step by step
(``tests/inside/test_released_trainer.py``), with its cut of gradients and its node gates. Both
circuits keep exactly as many edges, and their KL is on 400 prompts that nobody trained on.

    PYTHONPATH=tests python -m benchmarks.converged_pruning --out converged.csv
    PYTHONPATH=tests python -m benchmarks.converged_pruning --out converged.csv --table

A run takes minutes; finished ones stand in the file and are not repeated.
"""

import argparse
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch

import graphprune as gp
from graphprune.adapters.reference_models.language import (
    TrainingSettings,
    trained_ioi,
    trained_task,
)
from graphprune.util.numbers import bootstrap_interval

SHARES = (0.05, 0.1, 0.2, 0.3)
FORMS = {
    "ours": {},
    "published": {"variant": "paper", "node_gates": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    given = parser.parse_args()
    rows = pd.read_csv(given.out).to_dict("records") if given.out.exists() else []
    done = {(row["seed"], row["share"], row["form"], row["steps"]) for row in rows}
    if not given.table:
        torch.set_num_threads(1)
        module, tokenizer = trained_ioi(0, TrainingSettings(layers=4, heads=4))
        model, judge = gp.wrap(module), trained_task(tokenizer, 400, 7)
        for seed, share, form in product(range(given.seeds), SHARES, FORMS):
            if (seed, share, form, given.steps) not in done:
                rows.append(run(model, judge, tokenizer, seed, share, form, given.steps))
                print(rows[-1], flush=True)
                pd.DataFrame(rows).to_csv(given.out, index=False)
    print(table(pd.DataFrame(rows)))


def run(model, judge, tokenizer, seed, share, form, steps):
    find = trained_task(tokenizer, 256, 100 + seed, held_out=False)
    size = round(share * model.graph.num_edges)
    start = time.process_time()
    method = gp.EdgePruning(steps=steps, batch_size=32, seed=seed, **FORMS[form])
    mask = method.fit(model, find, size=size).mask
    seconds = time.process_time() - start
    report = gp.evaluate(model, judge, mask, metrics=["kl", "exact_match"])
    return {
        "seed": seed, "share": share, "form": form, "steps": steps, "asked": size,
        "kept": mask.num_kept, "kl": report["kl"], "same_answer": report["exact_match"],
        "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def table(rows: pd.DataFrame) -> str:
    """A row a share: mean KL of both forms, the ratio of each seed's pair and its interval."""
    lines = ["| edges | seeds | ours | published | ours / published |", "|---|---|---|---|---|"]
    for share, of_share in rows.groupby("share"):
        pairs = of_share.pivot_table(index="seed", columns="form", values="kl").dropna()
        if not len(pairs):
            continue
        ratios = torch.tensor((pairs["ours"] / pairs["published"]).to_numpy())
        low, high = bootstrap_interval(ratios) if len(pairs) > 1 else (float("nan"),) * 2
        means = pairs.mean()
        size = f"{int(of_share['asked'].iloc[0])} ({share:.0%})"
        lines.append(
            f"| {size} | {len(pairs)} | {means['ours']:.3f} | {means['published']:.3f} "
            f"| {ratios.mean():.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
