"""Texts of foreign files: in a terminal, in a drawing, in a spreadsheet, as a file's name."""

import csv
import io
import logging

import networkx as nx
import pandas as pd
import pytest
import torch
from rich.console import Console
from support.cli import call

import graphprune as gp
from graphprune.cli import command
from graphprune.errors import InputError
from graphprune.util.files import atomic_folder, write_text
from graphprune.util.plain import csv_text
from graphprune.util.progress import printable

STEERING = {
    "clears the screen": "\x1b[2J",
    "sets the title": "\x1b]0;title\x07",
    "one byte for an escape": "\x9b2J",
    "overwrites the line": "\rdone",
    "deletes": "\b\x7f",
    "turns the direction": "\u202egpj.exe",
    "isolates": "\u2066x\u2069",
    "a line that terminals break": "a\u2028b",
    "NUL": "a\0b",
    "a lone surrogate": "\ud800",
}


def hostile_circuit(text):
    """A circuit whose every text holds ``text``."""
    nodes = (
        gp.Node(f"a{text}", text, 0, 0, {text: text}),
        gp.Node(f"b{text}", text, 1, 0, {"URL": text}),
    )
    graph = gp.ComputationalGraph(
        nodes, torch.tensor([[0], [1]]), torch.zeros(1, dtype=torch.uint8), (text,)
    )
    scores = gp.EdgeScores(graph, torch.tensor([0.5]), method=text)
    provenance = {"model": {"model": text, text: text}, "notes": {"why": text}}
    report = {"kl": 0.5, "notes": {"kl": text}, text: text}
    return gp.Circuit(graph, gp.EdgeMask.full(graph), scores, report, provenance)


@pytest.mark.parametrize("trick", STEERING)
def test_no_text_steers_the_terminal(trick, tmp_path, capsys):
    text = STEERING[trick]
    hostile_circuit(text).save(tmp_path / "c")
    assert call("info", "--circuit", tmp_path / "c") == 0
    shown = capsys.readouterr()
    assert not set(shown.out + shown.err) & (set(text) - set("[2J]0;titledonegpj.exeab"))
    assert printable(text) in shown.out.replace("\n", "")


def test_log_lines_and_errors_are_plain(capsys):
    with command._logging(quiet=False):
        logging.getLogger("graphprune").warning("a study called %s", "\x1b[2J")
    command._say("error: \x1b[2J\nsecond line")
    assert capsys.readouterr().err == "a study called \\x1b[2J\nerror: \\x1b[2J\nsecond line\n"


def test_what_a_command_prints_is_plain():
    stream = io.StringIO()
    console = command._console(stream)
    assert isinstance(console, Console)
    console.print("\x1b[2J", "b")
    command.table(console, "title \x07", ["name", ""], [["\x1b[2J", "\r"]])
    assert not {"\x1b", "\x07", "\r"} & set(stream.getvalue())


# -------------------------------------------------------------------- drawings


def test_dot_takes_no_attribute_of_others(tmp_path):
    """Graphviz would link to these, read these files, or write the node as something else."""
    names = ("URL", "href", "image", "shapefile", "label", "imagepath", "_background", "layer")
    attributes = dict.fromkeys(names, "file:///etc/passwd")
    graph = nx.DiGraph()
    graph.add_node("a", **attributes)
    graph.add_edge("a", 'b"]; evil [URL="x"', **attributes)
    ours = gp.ComputationalGraph.from_networkx(graph)
    circuit = gp.Circuit.from_mask(gp.EdgeMask.full(ours))
    text = gp.export.export(circuit, tmp_path / "c.dot").read_text()
    for name in (*names, "evil"):
        assert f'"{name}"=' not in text
    assert '"attribute_URL"="file:///etc/passwd"' in text
    assert text.count('\\"') == 9  # three marks of a name that stands in three places


# -------------------------------------------------------------------- spreadsheets

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_is_a_formula(formula, tmp_path):
    graph = gp.ComputationalGraph.from_edges([(formula, "b")])
    circuit = gp.Circuit.from_mask(gp.EdgeMask.full(graph))
    path = gp.export.export(circuit, tmp_path / "c.csv")
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    shown = "'" + formula.replace("\r", "\\r")
    assert row["source"] == shown
    assert row["edge"] == f"{shown}->b"
    table = csv_text(pd.DataFrame({formula: [formula, "a"], "score": [-1.5, 2]}))
    assert list(csv.reader(io.StringIO(table, newline=""))) == [
        [shown, "score"], [shown, "-1.5"], ["a", "2.0"],
    ]  # fmt: skip


# -------------------------------------------------------------------- names

SUFFIXES = ["csv", "dot", "graphml", "gexf", "json", "cyjs", "html"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["a\0b", "\ud800", "n" * 300, "../../../x", "<script>", "a->b<q>"])
def test_any_name_can_be_saved_and_exported(name, suffix, tmp_path):
    graph = gp.ComputationalGraph.from_edges([(name, "b"), ("b", name + "c")])
    circuit = gp.Circuit.from_mask(gp.EdgeMask.full(graph))
    assert gp.Circuit.load(circuit.save(tmp_path / "c")).edges() == circuit.edges()
    path = gp.export.export(circuit, tmp_path / f"c.{suffix}")
    assert path.stat().st_size > 50
    assert {p.name for p in tmp_path.iterdir()} == {"c", f"c.{suffix}"}


@pytest.mark.parametrize("name", ["a\0b.csv", "\ud800.csv", "n" * 300 + ".csv"])
def test_names_that_no_file_can_have(name, tmp_path):
    with pytest.raises(InputError, match=r"no file can be called|File name too long"):
        write_text(tmp_path / name, "x")
    with (
        pytest.raises(InputError, match=r"no file can be called|File name too long"),
        atomic_folder(tmp_path / name) as folder,
    ):
        (folder / "x").write_text("x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["n" * 250 + ".csv", "é" * 120 + ".csv", "a[b]*.csv"])
def test_the_longest_and_the_oddest_names_are_written(name, tmp_path):
    assert write_text(tmp_path / name, "x").read_text() == "x"
    with atomic_folder(tmp_path / "f" / name) as folder:
        (folder / "x").write_text("x")
    assert {p.name for p in tmp_path.iterdir()} == {name, "f"}
