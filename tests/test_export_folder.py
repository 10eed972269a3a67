"""The own format: round trips, exact bytes, and files that must be refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.toy import Toy, ToyExamples
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune import Circuit, ComputationalGraph, EdgeMask, EdgeScores, ExampleFingerprint, Node
from graphprune.errors import FormatError, InputError

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tiny(ablation: str | None = "mean") -> Circuit:
    graph = transformer_graph(1, 2, 1)
    values = torch.arange(graph.num_edges) / 4 - 1
    later = {"noise": 0.125} if ablation else {}
    scores = EdgeScores(graph, values, method="EAP", **later)
    return Circuit(
        graph,
        scores.top(4),
        scores,
        {"kl": 0.5, "n_edges": 4, "accuracy": float("nan"), "why": {"accuracy": "no labels"}},
        {"model": {"model": "tiny", "d_model": 8}, "seed": 0, "notes": "naïve </script>"},
        found_on=frozenset([ExampleFingerprint(3, -4), ExampleFingerprint(-5)])
        if ablation
        else None,
        ablation=ablation,
    )


def test_circuit_json_is_byte_for_byte_the_golden_file(tmp_path):
    tiny().save(tmp_path / "c")
    written = (tmp_path / "c" / "circuit.json").read_bytes()
    assert written == (GOLDEN / "circuit_v2" / "circuit.json").read_bytes()
    stored = load_file(GOLDEN / "circuit_v2" / "tensors.safetensors")
    fresh = load_file(tmp_path / "c" / "tensors.safetensors")
    assert {k: v.tolist() for k, v in stored.items()} == {k: v.tolist() for k, v in fresh.items()}


def test_golden_folders_of_every_version_are_read():
    old, new = (Circuit.load(GOLDEN / f"circuit_v{version}") for version in (1, 2))
    assert old == tiny(ablation=None)
    assert (old.ablation, old.found_on, old.scores.noise) == (None, None, 0.0)
    assert new == tiny()
    assert (new.ablation, new.scores.noise) == ("mean", 0.125)
    assert new.found_on == {ExampleFingerprint(3, -4), ExampleFingerprint(-5)}


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, None), (2, 4, 2)])
def test_round_trip(tmp_path, shape, scored):
    graph = transformer_graph(*shape)
    mask = EdgeMask(graph, torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0)))
    circuit = Circuit.from_mask(mask, random_scores(graph) if scored else None, notes={"a": [1]})
    circuit.save(tmp_path / "new" / "c")
    again = Circuit.load(tmp_path / "new" / "c")
    assert again == circuit
    assert again.graph.fingerprint == graph.fingerprint
    assert Circuit.load(tmp_path / "new" / "c" / "circuit.json") == circuit
    assert listed(tmp_path / "new") == ["c"]
    assert listed(tmp_path / "new" / "c") == ["circuit.json", "tensors.safetensors"]


def test_groups_attributes_and_odd_names_survive(tmp_path):
    graph = ComputationalGraph(
        nodes=(Node("../a\n", attributes={"w": (1.5, None)}), Node("β \ud800"), Node('"c"')),
        edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]),
        edge_kind=torch.zeros(3, dtype=torch.uint8),
        groups=((0, 1),),
    )
    Circuit.from_mask(EdgeMask.full(graph)).save(tmp_path / "c")
    again = Circuit.load(tmp_path / "c").graph
    assert again == graph
    assert again.nodes[0].attributes == {"w": [1.5, None]}
    assert again.groups == ((0, 1),)


# -------------------------------------------------------------------- folders that exist


def test_a_folder_that_exists_is_kept(tmp_path):
    circuit = tiny()
    circuit.save(tmp_path / "c")
    with pytest.raises(InputError, match="exists and is not empty"):
        circuit.save(tmp_path / "c")
    (tmp_path / "c" / "mine.txt").write_text("mine")
    other = Circuit(circuit.graph, EdgeMask.full(circuit.graph))
    other.save(tmp_path / "c", overwrite=True)
    assert Circuit.load(tmp_path / "c") == other
    assert (tmp_path / "c" / "mine.txt").read_text() == "mine"


def test_overwrite_never_touches_a_foreign_folder(tmp_path):
    (tmp_path / "circuit.json").write_text('{"format": "other"}')
    with pytest.raises(InputError, match="holds no graphprune circuit"):
        tiny().save(tmp_path, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        tiny().save(tmp_path / "file", overwrite=True)
    assert listed(tmp_path) == ["circuit.json", "file"]


def test_an_empty_folder_is_filled(tmp_path):
    tiny().save(tmp_path)
    assert Circuit.load(tmp_path) == tiny()


# -------------------------------------------------------------------- attacks


def edit(change):
    def attack(folder):
        path = folder / "circuit.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return attack


def tensors(change):
    def attack(folder):
        path = folder / "tensors.safetensors"
        found = load_file(path)
        change(found)
        path.unlink()
        save_file(found, path)

    return attack


def raw(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def truncate(folder):
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def set_first(name, value):
    def change(found):
        found[name].view(-1)[0] = value

    return tensors(change)


ATTACKS = {
    "truncated tensors": (truncate, "no readable safetensors"),
    "tensors are a pickle": (raw("tensors.safetensors", b"\x80\x04N."), "no readable safetensors"),
    "no tensors": (lambda f: (f / "tensors.safetensors").unlink(), "is not there"),
    "no json": (lambda f: (f / "circuit.json").unlink(), "is not there"),
    "not json": (raw("circuit.json", b"{"), "no readable JSON"),
    "not utf-8": (raw("circuit.json", b'{"a": "\xff"}'), "no readable JSON"),
    "deep json": (raw("circuit.json", b"[" * 200_000), "no readable JSON"),
    "a list": (raw("circuit.json", b"[]"), "got list"),
    "NaN in json": (edit(lambda d: d.update(report={"kl": float("nan")})), "NaN is no JSON"),
    "repeated key": (raw("circuit.json", b'{"a": 1, "a": 2}'), "'a' stands there twice"),
    "foreign": (edit(lambda d: d.update(format="onnx")), "got 'onnx'"),
    "newer": (edit(lambda d: d.update(version=3)), "version 3 of the format"),
    "version a text": (edit(lambda d: d.update(version="1")), "a whole number as version"),
    "version a boolean": (edit(lambda d: d.update(version=True)), "a whole number as version"),
    "extra key": (edit(lambda d: d.update(tensors="../../etc/passwd")), "tensors: Extra inputs"),
    "missing key": (edit(lambda d: d.pop("digest")), "digest: Field required"),
    "wrong type": (edit(lambda d: d.update(num_kept="4")), "num_kept"),
    "wrong fingerprint": (
        edit(lambda d: d["graph"].update(fingerprint="0" * 64)),
        "names the graph 000000000000",
    ),
    "renamed node": (edit(lambda d: d["nodes"][1].update(name="x")), "names the graph"),
    "doubled node": (edit(lambda d: d["nodes"][1].update(name="input")), "must be unique"),
    "node count": (edit(lambda d: d["nodes"].pop()), "num_nodes is 6"),
    "output out of range": (edit(lambda d: d["graph"].update(outputs=[99])), "node 99 is named"),
    "negative node": (edit(lambda d: d["graph"].update(inputs=[-1])), "graph.inputs.0"),
    "num_kept": (edit(lambda d: d.update(num_kept=5)), "num_kept says 5"),
    "edge out of range": (set_first("edge_index", 99), "edge_index names a node outside"),
    "wire out of range": (set_first("fixed_edge_index", -3), "fixed names a node outside"),
    "kind out of range": (set_first("edge_kind", 9), "edge_kind names a kind outside"),
    "moved edge": (set_first("edge_index", 1), "one of the two files was changed"),
    "NaN score": (set_first("scores", float("nan")), "1 of 11 edge scores are NaN"),
    "infinite score": (set_first("scores", float("inf")), "NaN or infinite"),
    "mask of 2": (set_first("mask", 2.0), r"must lie in \[0, 1\]"),
    "other score": (set_first("scores", 3.0), "digests differ"),
    "other mask": (set_first("mask", 0.25), "digests differ"),
    "extra tensor": (tensors(lambda t: t.update(more=torch.zeros(1))), r"unexpected \['more'\]"),
    "missing tensor": (tensors(lambda t: t.pop("scores")), r"missing \['scores'\]"),
    "wrong dtype": (
        tensors(lambda t: t.update(mask=t["mask"].double())),
        "mask should be torch.float32",
    ),
    "wrong shape": (tensors(lambda t: t.update(mask=t["mask"][:3])), r"got torch.float32 \[3\]"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_bad_file_is_refused_with_its_place(tmp_path, name):
    attack, message = ATTACKS[name]
    tiny().save(tmp_path / "c")
    attack(tmp_path / "c")
    with pytest.raises(FormatError, match=message) as caught:
        Circuit.load(tmp_path / "c")
    assert str(tmp_path) in str(caught.value)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(FormatError, match="expected a circuit folder"):
        Circuit.load(tmp_path / "nowhere")


def test_the_format_page_names_every_key_and_tensor():
    page = (ROOT / "graphprune" / "export" / "FORMAT.md").read_text(encoding="utf-8")
    names = set()
    for version in ("circuit_v1", "circuit_v2"):
        document = json.loads((GOLDEN / version / "circuit.json").read_text())
        names |= {*document, *document["graph"], *document["nodes"][0]}
        with safe_open(GOLDEN / version / "tensors.safetensors", "pt") as file:
            names |= set(file.keys())
    for name in names:
        assert f"`{name}`" in page or f'"{name}"' in page, name


def evaluated(examples: int) -> Circuit:
    model = Toy()
    task = gp.Task(ToyExamples(n=examples), gp.METRICS["logit_diff"], name="toy", batch_size=4)
    mask = gp.EAP().score(model, task).top(6)
    return Circuit.from_mask(mask, model=model, task=task, report=gp.evaluate(model, task, mask))


def test_an_evaluation_comes_back_with_its_intervals(tmp_path):
    circuit = evaluated(12)
    before = circuit.report
    folder = circuit.save(tmp_path / "c")
    again = Circuit.load(folder)
    after = again.report
    assert type(after) is type(before) is gp.EvaluationReport
    assert after.values == before.values
    assert after.to_dict() == before.to_dict()
    for name in before.intervals():
        assert after.interval(name) == before.interval(name)
    assert after.to_frame().equals(before.to_frame())
    assert again == circuit
    again.save(tmp_path / "again")
    texts = [(tmp_path / n / "circuit.json").read_bytes() for n in ("c", "again")]
    assert texts[0] == texts[1]
    # A line for each measure: a report on many examples keeps the file legible.
    assert len(texts[0].splitlines()) < 200


def test_an_evaluation_with_other_than_finite_figures_comes_back(tmp_path):
    circuit = evaluated(12)
    circuit.report.values["seconds"] = float("inf")
    circuit.report.bounds["logit_diff"] = (-float("inf"), 3.0)
    after = Circuit.load(circuit.save(tmp_path / "c")).report
    assert after["seconds"] == float("inf")
    assert after.bounds == circuit.report.bounds


def test_a_report_without_values_of_examples_stays_a_dict(tmp_path):
    """As graphprune wrote evaluations before."""
    folder = evaluated(12).save(tmp_path / "c")
    path = folder / "circuit.json"
    document = json.loads(path.read_text())
    del document["report"]["per_example"]
    path.write_text(json.dumps(document))
    report = Circuit.load(folder).report
    assert isinstance(report, dict)
    assert report["faithfulness"] == document["report"]["faithfulness"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["per_example"]["full"]["kl"].pop(), "the lists have different lengths"),
        (lambda r: r["per_example"].pop("bounds"), "per_example.bounds: Field required"),
        (lambda r: r["per_example"]["circuit"].update(kl=["x"]), "per_example.circuit.kl.0"),
        (lambda r: r.update(per_example=3), "per_example: Input should be"),
    ],
)
def test_a_broken_evaluation_is_refused(tmp_path, change, message):
    folder = evaluated(12).save(tmp_path / "c")
    path = folder / "circuit.json"
    document = json.loads(path.read_text())
    change(document["report"])
    path.write_text(json.dumps(document))
    with pytest.raises(FormatError, match=message):
        Circuit.load(folder)
