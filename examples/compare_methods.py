"""Several ways of scoring edges on one task: CPR, CMD and the area over log size, and their curves.

By default a three-layer GPT-2 learns the indirect-object task on four templates first (about a
minute), so there is a real mechanism to find; ``--model`` takes a pretrained one instead. Small
graphs also get exact patching, the truth that attribution approximates.

    python examples/compare_methods.py --out comparison
    python examples/compare_methods.py --out comparison --model smollm2 --examples 32
    python examples/compare_methods.py --out comparison --quick    # the small model, untrained
"""

import argparse
import time
from pathlib import Path

import pandas as pd
from small_models import random_gpt2, small_tokenizer, train

import graphprune as gp
from graphprune.drawing.plots import plot_curves

TEMPLATES = [0, 1, 15, 16]
SIZES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def load(name: str | None, quick: bool):
    if name is None:
        tokenizer = small_tokenizer()
        model = random_gpt2(len(tokenizer))
        if not quick:
            lessons = gp.tasks.ioi(
                tokenizer, n=8000, seed=1, corruption="swap", templates=TEMPLATES
            )
            print(f"training on {len(lessons)} prompts; loss {train(model, lessons, 400):.3f}")
        return gp.wrap(model), tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = gp.fetch("smollm2") if name == "smollm2" else name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return gp.wrap(AutoModelForCausalLM.from_pretrained(folder)), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="a folder")
    parser.add_argument("--model", help="a folder, a Hugging Face id or smollm2")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="no training, few prompts")
    args = parser.parse_args()

    model, tokenizer = load(args.model, args.quick)
    examples = 8 if args.quick else args.examples
    task = gp.tasks.ioi(tokenizer, n=examples, corruption="swap", templates=TEMPLATES)
    find, judge = task.split(0.5)
    small = model.graph.num_edges < 2000
    methods = [
        gp.EAP(),
        gp.EAPIG(steps=5),
        gp.CleanCorrupted(),
        gp.RelP(),
        gp.IntegratedMaskGradient(),
        gp.InformationFlow(),
        gp.NAP(),
        gp.Random(seed=0),
        *([gp.ExactPatching()] if small else []),
    ]
    sizes = SIZES if small else gp.MIB_SIZES
    rows, curves = [], []
    for method in methods:
        start = time.perf_counter()
        scores = method.score(model, find)
        seconds = time.perf_counter() - start
        curve = gp.faithfulness_curve(model, judge, scores, sizes)
        rows.append({"method": method.label, **curve.summary(), "seconds": seconds})
        curves.append(curve)
    table = pd.DataFrame(rows)
    print(f"{model.graph.num_edges} edges, {len(find)} prompts to score, {len(judge)} to judge")
    print(table.round(3).to_string(index=False))
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "methods.csv", index=False)
    plot_curves(curves, path=args.out / "curves.png")
    print(f"written to {args.out}: methods.csv, curves.png")


if __name__ == "__main__":
    main()
