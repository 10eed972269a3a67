"""Circuits on the hub and in circuit-tracer's viewer."""

import json

import pytest
import torch
from support.hub import Hub

import graphprune as gp
from graphprune.export import attribution_graph, export


def small_circuit(**provenance):
    """Two layers of a head with q, k and v and an MLP; some edges kept, with scores."""
    nodes = [
        gp.Node("input", "embed"),
        gp.Node("a0.h0", "head", 0, 0),
        gp.Node("m0", "mlp", 0),
        gp.Node("a1.h0", "head", 1, 0),
        gp.Node("logits", "output"),
    ]
    edges = [
        ("input", "a0.h0", "q"),
        ("input", "a0.h0", "k"),
        ("input", "m0", "mlp"),
        ("a0.h0", "m0", "mlp"),
        ("m0", "a1.h0", "v"),
        ("a1.h0", "logits", "resid"),
        ("input", "logits", "resid"),
    ]
    names = [node.name for node in nodes]
    kinds = ["q", "k", "v", "mlp", "resid"]
    graph = gp.ComputationalGraph(
        nodes=tuple(nodes),
        edge_index=torch.tensor([[names.index(u), names.index(v)] for u, v, _ in edges]).T,
        edge_kind=torch.tensor([kinds.index(k) for *_, k in edges], dtype=torch.uint8),
        edge_kinds=tuple(kinds),
        ports=("q", "k", "v"),
    )
    scores = gp.EdgeScores(graph, torch.tensor([1.0, 0.5, -0.25, 2.0, 4.0, 3.0, 0.0]), method="EAP")
    mask = gp.EdgeMask(graph, torch.tensor([1, 1, 1, 1, 1, 1, 0.0]))
    return gp.Circuit(graph, mask, scores, provenance=provenance, ablation="zero")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    served = Hub()
    import huggingface_hub.constants as constants

    template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    yield served
    served.close()


def test_a_circuit_comes_back_from_the_hub_as_it_was(hub, tmp_path):
    circuit = small_circuit(model={"model": "me/tiny"}, task={"name": "ioi"})
    address = circuit.push_to_hub("me/circuit")
    assert address.startswith(f"{hub.endpoint}/me/circuit/commit/")
    files = hub.files["me/circuit"]
    assert {"circuit.json", "tensors.safetensors", "README.md"} <= set(files)
    assert files["circuit.png"].startswith(b"\x89PNG")
    for back in (gp.Circuit.from_hub("me/circuit"), gp.load("me/circuit", cache=tmp_path / "c")):
        assert back == circuit
        assert back.scores.values.equal(circuit.scores.values)


def test_a_second_upload_replaces_the_circuit(hub):
    circuit = small_circuit()
    circuit.push_to_hub("me/circuit")
    smaller = gp.Circuit.from_mask(circuit.scores.top(2), scores=circuit.scores)
    smaller.push_to_hub("me/circuit", message="two edges")
    assert gp.load("me/circuit").edges() == smaller.edges()


def test_a_card_says_what_where_from_and_how_to_load(hub):
    report = {"kl": 0.125, "intervals": {"kl": [0.1, 0.15]}, "n_edges": 6}
    plain = small_circuit(model={"model": "me/tiny"}, task={"name": "ioi"}, method={"name": "EAP"})
    circuit = gp.Circuit(
        plain.graph, plain.mask, plain.scores, report, plain.provenance, None, "zero"
    )
    circuit.push_to_hub("me/circuit")
    card = hub.files["me/circuit"]["README.md"].decode()
    head, _, text = card.removeprefix("---\n").partition("\n---\n")
    import yaml

    assert yaml.safe_load(head) == {
        "library_name": "graphprune",
        "tags": ["graphprune", "circuit", "interpretability"],
        "base_model": "me/tiny",
    }
    assert "6 of 7 edges (85.71%)" in text
    assert 'gp.load("me/circuit")' in text
    assert "| KL to the whole model, nats | 0.125 | 0.1 to 0.15 |" in text
    assert "| ablation | zero |" in text


def test_a_card_shows_hostile_text_as_text(hub):
    evil = "x\n# Heading\n<script>alert(1)</script> ![i](http://e.x) | cell\nbase_model: other/one"
    small_circuit(model={"model": evil}, task={"name": evil}).push_to_hub("me/circuit")
    card = hub.files["me/circuit"]["README.md"].decode()
    head, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert "base_model" not in head
    assert "<script" not in text
    assert "](http" not in text.replace("](https://pypi.org/project/graphprune/)", "")
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1


def test_the_hub_s_refusals_are_sentences(hub, monkeypatch):
    circuit = small_circuit()
    with pytest.raises(gp.InputError, match="cannot upload the circuit to"):
        circuit.push_to_hub("no good/name at all")
    with pytest.raises(gp.FetchError, match="cannot fetch the circuit 'me/none'"):
        gp.load("me/none")
    hub.refuse = 403
    with pytest.raises(gp.FetchError, match="cannot upload the circuit to 'me/circuit'"):
        circuit.push_to_hub("me/circuit")
    assert hub.files["me/circuit"] == {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(gp.FetchError, match="cannot fetch the circuit 'me/other'"):
        gp.load("me/other")


def test_a_foreign_repository_is_no_circuit(hub):
    hub.files["me/model"] = {"circuit.json": b"{}", "tensors.safetensors": b"x"}
    with pytest.raises(gp.FormatError):
        gp.load("me/model")


def test_load_takes_a_folder_and_names_what_is_neither(tmp_path):
    circuit = small_circuit()
    circuit.save(tmp_path / "c")
    assert gp.load(tmp_path / "c") == circuit
    with pytest.raises(gp.InputError, match="belong to the hub"):
        gp.load(tmp_path / "c", revision="main")
    with pytest.raises(gp.InputError, match="hub id such as 'user/name'"):
        gp.load(tmp_path / "absent")
    with pytest.raises(gp.InputError, match="hub id such as 'user/name'"):
        gp.load("./absent")


def test_the_attribution_graph_has_the_viewer_s_schema(tmp_path):
    """Fields and types as circuit-tracer's own models declare them (schema version 1)."""
    from pydantic import BaseModel, ConfigDict

    class Metadata(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        slug: str
        scan: str
        transcoder_list: list[str]
        prompt_tokens: list[str]
        prompt: str
        node_threshold: float | None
        schema_version: int | None

    class QParams(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        pinnedIds: list[str]
        supernodes: list[list[str]]
        linkType: str
        clickedId: str
        sg_pos: str

    class Node(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        node_id: str
        feature: int
        layer: str
        ctx_idx: int
        feature_type: str
        token_prob: float
        is_target_logit: bool
        run_idx: int
        reverse_ctx_idx: int
        jsNodeId: str
        clerp: str
        influence: float | None
        activation: float | None

    class Link(BaseModel):
        model_config = ConfigDict(strict=True)
        source: str
        target: str
        weight: float

    class Document(BaseModel):
        metadata: Metadata
        qParams: QParams
        nodes: list[Node]
        links: list[Link]

    path = export(small_circuit(), tmp_path / "c.attribution.json")
    Document.model_validate(json.loads(path.read_text()))


def test_the_attribution_graph_sums_a_head_s_readers_and_keeps_layers():
    document = attribution_graph(small_circuit())
    layers = {node["node_id"]: node["layer"] for node in document["nodes"]}
    assert layers == {"input": "E", "a0.h0": "0", "m0": "0", "a1.h0": "1", "logits": "2"}
    links = {(link["source"], link["target"]): link for link in document["links"]}
    assert links["input", "a0.h0"]["weight"] == 1.5
    assert links["input", "a0.h0"]["kinds"] == ["q", "k"]
    assert ("input", "logits") not in links
    assert sum(link["weight"] for link in document["links"]) == pytest.approx(10.25)
    tokens = document["metadata"]["prompt_tokens"]
    assert tokens == ["input", "heads", "MLPs", "output"]
    columns = {node["node_id"]: tokens[node["ctx_idx"]] for node in document["nodes"]}
    assert columns["m0"] == "MLPs"


def test_the_attribution_graph_of_a_cyclic_graph_has_depths():
    """One token never stands alone: the viewer drops what stands at more than 2/3 of the tokens."""
    edges = [("a", "b"), ("b", "c"), ("c", "a")]
    graph = gp.ComputationalGraph.from_edges(edges)
    document = attribution_graph(gp.Circuit.from_mask(gp.EdgeMask.full(graph)))
    assert len(document["metadata"]["prompt_tokens"]) >= 2
    assert all(node["layer"].isdigit() for node in document["nodes"])
    assert [link["weight"] for link in document["links"]] == [1.0, 1.0, 1.0]
