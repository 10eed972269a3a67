"""The main job on a real model: score all edges, keep a few, show how faithful they are.

Finds SmolLM2-135M's circuit for "When Mary and John went to the park, John gave a book to",
which goes on with " Mary", and hands it over as a networkx graph, a folder, GraphML, a MIB score
file, a figure and an interactive page. The prompts that judge the circuit did not find it.

    python examples/ioi_circuit.py --out ioi-circuit
    python examples/ioi_circuit.py --out ioi-circuit --quick    # tiny random model, no download
"""

import argparse
from pathlib import Path

from small_models import random_llama, small_tokenizer

import graphprune as gp
from graphprune.export import export


def load(quick: bool):
    if quick:
        tokenizer = small_tokenizer()
        return gp.wrap(random_llama(len(tokenizer))), tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = gp.fetch("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return gp.wrap(AutoModelForCausalLM.from_pretrained(folder)), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("ioi-circuit"), help="a new folder")
    parser.add_argument("--examples", type=int, default=64, help="half find it, half judge it")
    parser.add_argument("--size", type=float, default=0.01, help="fraction of the edges to keep")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    args = parser.parse_args()
    examples, size = (8, 0.5) if args.quick else (args.examples, args.size)

    model, tokenizer = load(args.quick)
    task = gp.tasks.ioi(tokenizer, n=examples, corruption="swap", batch_size=16)
    train, held_out = task.split(0.5)

    scores = gp.EAPIG(steps=5).score(model, train)
    print(scores.to_frame().sort_values("score", ascending=False).head(5).to_string(index=False))
    mask = scores.top(size).prune_dead_ends()
    report = gp.evaluate(model, held_out, mask)
    low, high = report.interval("faithfulness")
    print(
        f"\n{mask.num_kept} of {model.graph.num_edges} edges; on {len(held_out)} held-out prompts:"
    )
    print(f"faithfulness {report['faithfulness']:.2f} (95% interval {low:.2f} to {high:.2f})")
    for name, what in (("accuracy", "against the distractor"), ("top1_accuracy", "of all tokens")):
        print(f"{name:13} {report[name]:.2f} {what} (full model {report.full[name]:.2f})")

    circuit = gp.Circuit.from_mask(mask, scores, model, train, report, gp.EAPIG(steps=5))
    graph = circuit.to_networkx()
    heads = [n for n, data in graph.nodes(data=True) if data["kind"] == "head"]
    print(f"\n{graph}: {len(heads)} heads, of which these have most edges:")
    for node, degree in sorted(graph.degree(heads), key=lambda pair: -pair[1])[:5]:
        print(f"  {node}: {degree}")

    circuit.save(args.out)
    for name in ("circuit.graphml", "circuit.mib.json", "circuit.svg", "circuit.html"):
        export(circuit, args.out / name)
    print(f"\nwritten to {args.out}; gp.Circuit.load({str(args.out)!r}) reads it back")


if __name__ == "__main__":
    main()
