"""Tricks in graph files: entities that unfold or name files, nesting, attributes of other types."""

import pytest

from graphprune.cli.facts import graph_facts
from graphprune.errors import FormatError, InputError

HEAD = '<?xml version="1.0"?>\n'
LAUGHS = (
    '<!DOCTYPE g [<!ENTITY a "ha">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    + "]>"
)
GRAPH = (
    '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
    '<key id="d0" for="edge" attr.name="weight" attr.type="{kind}"/>'
    '<graph edgedefault="{way}"><node id="a"/><node id="b"/>'
    '<edge source="a" target="{end}"><data key="d0">{weight}</data></edge></graph></graphml>'
)
FITS = {"kind": "double", "way": "directed", "end": "b", "weight": "1.5"}

REFUSED = {
    "a billion laughs": (HEAD + LAUGHS + "<g>&j;</g>", "declares a document type"),
    "a file by an entity": (
        HEAD + '<!DOCTYPE g [<!ENTITY x SYSTEM "file:///etc/passwd">]><g>&x;</g>',
        "declares a document type",
    ),
    "a type elsewhere": (HEAD + '<!DOCTYPE g SYSTEM "http://localhost/x"><g/>', "document type"),
    "nesting": (HEAD + "<g>" * 5000 + "</g>" * 5000, "nested more than 100 deep"),
    "no graph": (HEAD + "<g/>", "no readable .graphml"),
    "cut off": (HEAD + GRAPH.format(**FITS)[:150], "no readable .graphml"),
    "a number that is none": (HEAD + GRAPH.format(**{**FITS, "weight": "x"}), "no readable"),
    "a type that is none": (HEAD + GRAPH.format(**{**FITS, "kind": "code"}), "no readable"),
    "infinite": (HEAD + GRAPH.format(**{**FITS, "weight": "1e999"}), "NaN or infinite"),
    "both ways": (HEAD + GRAPH.format(**{**FITS, "way": "undirected"}), "undirected graph"),
    "an encoding that is none": ('<?xml version="1.0" encoding="x-none"?><g/>', "no readable"),
    "a letter that is none": (HEAD + "<g>\x00</g>", "no readable"),
}


@pytest.mark.parametrize("trick", REFUSED)
def test_refused(trick, tmp_path):
    text, sentence = REFUSED[trick]
    (tmp_path / "g.graphml").write_text(text, encoding="utf-8")
    with pytest.raises((FormatError, InputError), match=sentence):
        graph_facts(tmp_path / "g.graphml")


def test_a_graph_is_read(tmp_path):
    (tmp_path / "g.graphml").write_text(HEAD + GRAPH.format(**FITS))
    facts = graph_facts(tmp_path / "g.graphml")
    assert (facts["nodes"], facts["edges"], facts["weights"]) == (2, 1, "from the file")
