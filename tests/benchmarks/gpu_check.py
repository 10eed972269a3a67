"""What a GPU gives and takes, in at most eight minutes: exactness, time, memory, large shapes.

    python tests/benchmarks/gpu_check.py --out gpu.json      # one GPU; large shapes need 80 GB
    python tests/benchmarks/gpu_check.py --tiny              # the same on a CPU, in half a minute

Weights are random. Times are wall seconds, the least of three, beside a plain forward and backward
of the same prompts there (weights frozen, the last position's logits); memory is the most that was
allocated, weights included. ACDC and PAHQ are given a share of the time, and their ratio is that of
one measured circuit. A part that does not fit, or that the device lacks, says so in the table.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

import graphprune as gp
from graphprune.adapters.lm.describe.shape import random_model
from graphprune.util.quantities import best_seconds, synchronise

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.step_13b import config as shape_13b
from benchmarks.step_13b import measure, optimisation_step

GIB = 2**30
MINUTES = 8.0  # all parts together; what would start later is left out
FORMS = {
    "seconds": "{:9.4f} s",
    "ratio": "x {:7.2f}",
    "peak_gib": "{:7.2f} GiB",
    "gap": "gap {:.1e}",
}
LIMIT = 1e-4  # the largest difference from the CPU that passes, of the largest value (float32)


@dataclass(frozen=True)
class Sizes:
    """Shapes of the parts: a language model's (GPT-2 small), and large ones (8B, 13B)."""

    small: dict[str, int]
    large: LlamaConfig
    step: LlamaConfig
    prompts: tuple[int, int] = (8, 16)
    large_prompts: tuple[int, int] = (8, 64)
    step_prompts: tuple[int, int] = (8, 72)
    search_seconds: float = 35.0  # of each run of ACDC and PAHQ

    @classmethod
    def whole(cls) -> "Sizes":
        llama_8b = LlamaConfig(
            hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
        )  # fmt: skip
        return cls({}, llama_8b, shape_13b())

    @classmethod
    def tiny(cls) -> "Sizes":
        small = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 97}
        llama = LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=97,
        )  # fmt: skip
        step = shape_13b(layers=2, heads=2, width=16, vocab=97)
        return cls(small, llama, step, (2, 6), (2, 8), (2, 8), 2.0)


@dataclass
class Table:
    """Rows of what was found: ``{part, name, ...}``; a part that fails says why and is one row."""

    device: torch.device
    deadline: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def run(self, part: str, job: Callable[[], Iterator[dict[str, Any]]]) -> None:
        """The rows of a part, each as soon as it is known."""
        if time.monotonic() > self.deadline:
            self.add(part, {"name": "", "left_out": "no time was left"})
            return
        try:
            for row in job():
                self.add(part, row)
        except (gp.UnsupportedModelError, torch.OutOfMemoryError) as error:
            self.add(part, {"name": "", "left_out": str(error).splitlines()[0]})
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def add(self, part: str, row: dict[str, Any]) -> None:
        self.rows.append({"part": part, **row})
        cells = [f"{part:<10} {row['name']:<34}"]
        for name, form in FORMS.items():
            if row.get(name) is not None:
                cells.append(form.format(row[name]))
        cells += [str(row[name]) for name in ("note", "left_out") if row.get(name)]
        print("  ".join(cells), flush=True)

    def timed(self, name: str, job: Callable[[], object], plain: float = 0.0) -> dict[str, Any]:
        """A row of a job's least seconds, its ratio to ``plain`` seconds, and its peak."""
        _forget_peak(self.device)
        seconds = best_seconds(job, self.device)
        row = {"name": name, "seconds": seconds, "peak_gib": _peak(self.device)}
        return row | ({"ratio": seconds / plain} if plain else {})


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    """GiB; ``None`` on a CPU, where nobody counts."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def _gpt2(sizes: Sizes) -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**sizes.small, bos_token_id=0, eos_token_id=0)).eval()


def _task(prompts: tuple[int, int], vocab: int, metric: str = "logit_diff") -> gp.Task:
    ids = torch.randint(vocab, (2, *prompts), generator=torch.Generator().manual_seed(0))
    right, wrong = [5] * prompts[0], [6] * prompts[0]
    return gp.Task.from_tensors(ids[0], ids[1], answer=right, distractor=wrong, metric=metric)


def _plain(module: Any, batch: gp.Batch) -> Callable[[], None]:
    """A forward and backward of the module itself; gradients to the embeddings alone."""
    module.requires_grad_(False)
    ids = batch.clean["input_ids"].to(module.device)

    def run() -> None:
        embeds = module.get_input_embeddings()(ids).requires_grad_(True)
        logits = module(inputs_embeds=embeds, logits_to_keep=1).logits[:, -1]
        (logits[:, 5] - logits[:, 6]).sum().backward()

    return run


# ------------------------------------------------------------------ parts


def exactness(device: torch.device, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The device's numbers beside the CPU's, float32: the largest gap over the largest value."""
    task, kl = (
        _task(sizes.prompts, _gpt2(sizes).config.vocab_size, m) for m in ("logit_diff", "kl")
    )
    both = [gp.wrap(_gpt2(sizes).to(place)) for place in ("cpu", device)]
    batch = next(task.batches())
    draw = torch.rand(both[0].graph.num_edges, generator=torch.Generator().manual_seed(1))

    def slope(model: gp.MaskedModel) -> Tensor:
        mask = draw.clone().requires_grad_(True)
        outputs = model.run(batch, mask, model.reference(batch))
        return torch.autograd.grad(task.metric(outputs, batch).sum(), mask)[0]

    compared: dict[str, Callable[[gp.MaskedModel], Tensor]] = {
        "masked forward": lambda model: model.run(batch, draw, model.reference(batch)).detach(),
        "gradient of a mask": slope,
        "EAP": lambda model: gp.EAP().score(model, task).values,
        "EAP-IG, 5 steps": lambda model: gp.EAPIG(steps=5).score(model, task).values,
    }
    for name, job in compared.items():
        ours, theirs = (job(model).cpu().double() for model in reversed(both))
        gap = float((ours - theirs).abs().max() / theirs.abs().max())
        yield {"name": name, "gap": gap, "note": "" if gap <= LIMIT else f"MORE THAN {LIMIT:g}"}
    few = {**sizes.small, "n_layer": 2, "n_head": 4, "n_embd": 64}
    pair = [gp.wrap(_gpt2(Sizes(few, sizes.large, sizes.step)).to(p)) for p in ("cpu", device)]
    ours, theirs = (gp.ACDC(tau=1e-3).fit(model, kl).mask for model in reversed(pair))
    differ = int((ours.kept != theirs.kept).sum())
    note = f"{theirs.num_kept} of {len(theirs.values)} edges kept, {differ} decided otherwise"
    yield {"name": "ACDC, two layers", "gap": float(differ > 0), "note": note}


def ratios(table: Table, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Times of GPT-2 small's shape beside a plain pass."""
    device = table.device
    module = _gpt2(sizes).to(device)
    model, task = gp.wrap(module), _task(sizes.prompts, module.config.vocab_size)
    batch = next(task.batches())
    plain = table.timed("plain forward and backward", _plain(module, batch))
    yield plain
    base = plain["seconds"]
    yield table.timed("EAP", lambda: gp.EAP().score(model, task), base)
    yield table.timed("EAP-IG, 5 steps", lambda: gp.EAPIG(steps=5).score(model, task), base)
    reference = model.reference(batch)
    step = optimisation_step(model, batch, reference)
    yield table.timed("an edge pruning step", step, base)
    edges = model.graph.num_edges
    draw = torch.rand(edges, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        yield table.timed("masked forward", lambda: model.run(batch, draw, reference), base)
    circuit = gp.Circuit.from_mask(gp.EdgeScores(model.graph, draw).greedy(0.02))
    compiled = circuit.compile(model, task)
    name = f"compiled circuit, {circuit.mask.num_kept} edges"
    yield table.timed(name, compiled, base)
    kl = _task(sizes.prompts, module.config.vocab_size, "kl")
    least = {"max_seconds": sizes.search_seconds}
    for tau in (1e-2, 1e-3):
        yield _searched(table, gp.ACDC(tau=tau, **least), f"ACDC, tau {tau:g}", model, kl, base)
    for precision in ("bf16", "fp8"):
        policy = gp.PrecisionPolicy({"mlp": precision}, emulate=False)
        method = gp.PAHQ(tau=1e-2, policy=policy, raised=(), **least)
        name = f"PAHQ, MLPs in {precision}"
        try:
            yield _searched(table, method, name, model, kl, base)
        except gp.UnsupportedModelError as error:
            yield {"name": name, "left_out": str(error).splitlines()[0]}


def _searched(
    table: Table, method: Any, name: str, model: gp.MaskedModel, task: gp.Task, plain: float
) -> dict[str, Any]:
    """A row of a search: its seconds, and of one measured circuit those beside a plain pass."""
    _forget_peak(table.device)
    start = time.perf_counter()
    found = method.fit(model, task)
    synchronise(table.device)
    seconds = time.perf_counter() - start
    runs = found.notes["evaluations"]
    note = f"{runs} circuits measured, {found.mask.num_kept} edges kept"
    return {
        "name": name, "seconds": seconds, "ratio": seconds / runs / plain,
        "peak_gib": _peak(table.device), "evaluations": runs,
        "note": f"{note} ({found.stopped})" if found.stopped else f"{note}, finished",
    }  # fmt: skip


def eap_8b(table: Table, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """EAP on the shape of an 8B model in bfloat16."""
    module = random_model(sizes.large, table.device, torch.bfloat16)
    weights = sum(p.nbytes for p in module.parameters()) / GIB
    model = gp.wrap(module, check=False)
    task = _task(sizes.large_prompts, sizes.large.vocab_size)
    plain = table.timed("plain forward and backward", _plain(module, next(task.batches())))
    yield plain | {"note": f"weights {weights:.2f} GiB"}
    row = table.timed("EAP", lambda: gp.EAP().score(model, task), plain["seconds"])
    yield row | {"note": f"{model.graph.num_edges:,} edges"}


def step_13b(table: Table, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """One optimisation step on the shape of a 13B model in bfloat16."""
    _forget_peak(table.device)
    found = measure(sizes.step, *sizes.step_prompts, str(table.device), "bfloat16", steps=3)
    yield {
        "name": "a mask optimiser's step", "seconds": found["seconds_step"],
        "peak_gib": _peak(table.device),
        "note": f"{found['edges']:,} edges, weights {found['weights_gib']:.2f} GiB",
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="a JSON file of all rows")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cpu" and not given.tiny:
        parser.error("no GPU is here: --tiny tries the script on the CPU")
    sizes = Sizes.tiny() if given.tiny else Sizes.whole()
    start = time.monotonic()
    table = Table(device, start + 60 * MINUTES - 3 * sizes.search_seconds)
    table.run("exactness", lambda: exactness(device, sizes))
    table.run("8B", lambda: eap_8b(table, sizes))
    table.run("13B", lambda: step_13b(table, sizes))
    table.run("GPT-2", lambda: ratios(table, sizes))
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found = {
        "device": named, "torch": torch.__version__, "graphprune": gp.__version__,
        "tiny": given.tiny, "seconds": time.monotonic() - start, "rows": table.rows,
    }  # fmt: skip
    print(f"{named}, torch {torch.__version__}: {found['seconds']:.0f} s")
    if given.out:
        Path(given.out).write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    with gp.quiet():
        rows = main()["rows"]
    raise SystemExit(any(row.get("gap", 0.0) > LIMIT for row in rows))
