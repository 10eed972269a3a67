"""Your own prompts and your own metric: a JSON-lines file, a callable, a circuit.

Each line of the file has ``clean``, ``corrupt``, ``answer`` and ``distractor``; the two prompts
have equally many tokens. Without ``--prompts`` the example writes such a file first. The metric is
any function of the outputs at the answer position and the batch that says which way is better.

    python examples/own_prompts.py --out own-circuit --prompts pairs.jsonl --model DIR_OR_ID
    python examples/own_prompts.py --out own-circuit --quick    # tiny random model, no download
"""

import argparse
import json
from pathlib import Path

import torch
from small_models import random_llama, small_tokenizer

import graphprune as gp

PAIRS = [
    ("Then Mary and John went to the park, and John gave a book to", " Mary", " John"),
    ("Then Peter and Laura went to the store, and Laura gave a ring to", " Peter", " Laura"),
    ("Then Sarah and Mark went to the school, and Mark gave a key to", " Sarah", " Mark"),
    ("Then Alice and Paul went to the office, and Paul gave a map to", " Alice", " Paul"),
]


def write_example(path: Path) -> Path:
    lines = []
    for clean, answer, distractor in PAIRS:
        before, mark, after = clean.partition(f"and{distractor} gave")
        corrupt = before + mark.replace(distractor, answer) + after
        pair = {"clean": clean, "corrupt": corrupt, "answer": answer, "distractor": distractor}
        lines.append(json.dumps(pair))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def log_odds(outputs: torch.Tensor, batch: gp.Batch) -> torch.Tensor:
    """Log odds of the answer against all other tokens, ``[B]`` from outputs ``[B, vocab]``."""
    log_p = outputs.log_softmax(-1).gather(-1, batch.answer[:, :1])[:, 0]
    return log_p - torch.log1p(-log_p.exp())


log_odds.higher_is_better = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("own-circuit"), help="a new folder")
    parser.add_argument("--prompts", type=Path, help="a .jsonl file; by default four pairs")
    parser.add_argument("--model", default="smollm2", help="a folder, a Hugging Face id or smollm2")
    parser.add_argument("--size", type=float, default=0.01, help="fraction of the edges to keep")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    args = parser.parse_args()

    if args.quick:
        tokenizer = small_tokenizer()
        model = gp.wrap(random_llama(len(tokenizer)))
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = gp.fetch("smollm2") if args.model == "smollm2" else args.model
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = gp.wrap(AutoModelForCausalLM.from_pretrained(folder))

    args.out.mkdir(parents=True, exist_ok=True)
    prompts = args.prompts or write_example(args.out / "pairs.jsonl")
    task = gp.Task.from_jsonl(prompts, tokenizer, metric=log_odds)
    print(task)

    scores = gp.EAP().score(model, task)
    mask = scores.greedy(0.5 if args.quick else args.size)
    report = gp.evaluate(model, task, mask)
    print(
        report.to_frame()[["measure", "circuit", "full", "ablated", "note"]].to_string(index=False)
    )
    circuit = gp.Circuit.from_mask(mask, scores, model, task, report)
    circuit.save(args.out / "circuit")
    print(circuit.to_networkx())


if __name__ == "__main__":
    main()
