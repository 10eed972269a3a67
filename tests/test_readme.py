"""The README is true: its Python runs, its commands exist, its lists are the library's own."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import typer
from support.cli import save_model

import graphprune as gp
from graphprune.cli.app import app

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
PYTHON = [block for language, block in BLOCKS if language == "python"]
SHELL = [block for language, block in BLOCKS if language == "bash"]
INSTALL = [
    'pip install -c constraints.txt ".[demo]" && graphprune demo',
    'pip install -c constraints.txt -e ".[test]" && pytest',
]


# The small model does no task: of 20 prompts on, nothing tells it from its ablated self.
SMALLER = {
    'fetch("smollm2")': "SMALL_MODEL",
    "n=64": "n=38",
    "n=32": "n=16",
    '["reverse"]': '["length"]',
    "m0->m2": "input->logits",
    "steps=150": "steps=40",
    "take(120)": "take(39)",
    "draws=30": "draws=3",
    "edges=200": "edges=50",
    "top(100)": "top(30)",
    "top(0.01)": "top(0.2)",
    "size=0.01": "size=0.2",
}


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    """On a tiny model in SmolLM2's place, and with smaller numbers."""
    folder = save_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert all(TEXT.count(number) for number in SMALLER)
    names = {"__name__": "readme", "SMALL_MODEL": folder}
    for number, block in enumerate(PYTHON):
        for said, smaller in SMALLER.items():
            block = block.replace(said, smaller)
        exec(compile(block, f"README block {number + 1}", "exec"), names)
    assert gp.Circuit.load(tmp_path / "ioi-circuit").graph == names["model"].graph
    printed = capsys.readouterr().out
    assert "faithfulness" in printed
    assert "scores_do_not_depend_on_batching" in printed


def test_every_name_of_the_library_exists():
    mentioned = set(re.findall(r"\bgp\.([A-Za-z_]+(?:\.[a-z_]+)?)", TEXT))
    assert len(mentioned) > 15
    for name in mentioned:
        thing = gp
        for part in name.split("."):
            thing = getattr(thing, part)
    for block in PYTHON:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("graphprune"):
                module = __import__(node.module, fromlist=["_"])
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_first_block_is_the_two_commands():
    assert BLOCKS[0] == ("bash", "\n".join(INSTALL) + "\n")


def test_continuous_integration_runs_the_second_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    lines = [line.replace(" --quiet", "") for line in script.splitlines()]
    for part in INSTALL[1].split(" && "):
        assert part in lines


def test_the_extras_and_pins_are_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set(re.findall(r'"\.\[(\w+)\]"', TEXT)) | {"plot"}
    assert named <= set(project["optional-dependencies"])
    pinned = set(re.findall(r"torch==[\d.]+\d", TEXT))
    assert len(pinned) == 1
    assert pinned <= set((ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    assert project["requires-python"] == ">=3.11"


COMMANDS = [
    line
    for block in SHELL
    for line in re.split(r"\n| && ", block)
    if line.startswith("graphprune ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_option_exists(line):
    """Parsed as typed, without running it."""
    _, name, *arguments = shlex.split(line, comments=True)
    group = typer.main.get_command(app)
    context = click.Context(group)
    command = group.get_command(context, name)
    assert command is not None, name
    command.make_context(name, arguments, parent=context)


def rows(heading: str) -> list[list[str]]:
    """The table behind ``heading``, cells of its rows."""
    behind = TEXT[TEXT.index(heading) :]
    table = re.search(r"(?:^\|.*\n)+", behind, re.MULTILINE)
    assert table is not None
    return [row.strip("| ").split(" | ") for row in table.group().splitlines()[2:]]


def quoted(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_tables_list_what_there_is():
    architectures = quoted([row[0] for row in rows("**Models**")])
    assert architectures == {name for known in gp.supported().values() for name in known}
    methods = rows("**Methods**")
    assert quoted([row[1] for row in methods]) == set(gp.method_names())
    tasks = {row[0].split("`")[1] for row in rows("**Tasks**")}
    assert tasks == set(gp.tasks.TASKS)


def test_every_example_is_counted():
    scripts = [p for p in (ROOT / "examples").glob("*.py") if p.name != "small_models.py"]
    assert len(scripts) == 8
    assert "eight scripts" in TEXT


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).is_file(), target
