"""README and documentation are true: their Python runs, their commands and names exist."""

import ast
import importlib
import inspect
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
DOCS = ROOT / "docs"
# What a page includes from elsewhere (CONTRIBUTING.md, CHANGELOG.md) has tests of its own.
PAGES = {"README.md": TEXT} | {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted(DOCS.rglob("*.md"))
    if "_build" not in path.parts
}
API = "".join(text for page, text in PAGES.items() if page.startswith("docs/api/"))
INSTALL = [
    'pip install -c constraints.txt ".[demo]" && graphprune demo',
    'pip install -c constraints.txt -e ".[test]" && pytest',
]


# A word that the run prints; every page with Python must be here, or the run says nothing.
RUNNABLE = {
    "README.md": "faithfulness",
    "docs/quickstart.md": "top1_accuracy",
    "docs/howto/acdc.md": "",
    "docs/howto/comparing.md": "by chance, degrees",
    "docs/howto/drawing.md": "",
    "docs/howto/edge-pruning.md": "exact=True",
    "docs/howto/ensembles.md": "EdgeMask(200 of",
    "docs/howto/graph-networks.md": "author__writes__paper",
    "docs/howto/own-method.md": "scores_do_not_depend_on_batching",
    "docs/howto/own-metric.md": "faithfulness",
    "docs/howto/own-prompts.md": "faithfulness",
    "docs/howto/spectral.md": "rotation_after",
    "docs/howto/statistics.md": "sufficiency",
    "docs/howto/studies.md": "12",
}


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of one language on a page, those that are only shown left out."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, PAGES[page], re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    """By the number of layers; two where every edge is tried, four where hundreds are kept."""
    return {
        layers: save_model(tmp_path_factory.mktemp("model"), num_hidden_layers=layers)
        for layers in (2, 4)
    }


@pytest.mark.parametrize("page", RUNNABLE)
@pytest.mark.usefixtures("small_models_decide")
def test_the_python_blocks_run_in_order(page, tiny_models, tmp_path, monkeypatch, capsys):
    """On a tiny model in SmolLM2's place, each page by itself."""
    monkeypatch.setattr(gp, "fetch", lambda name: tiny_models[2 if "acdc" in page else 4])
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page} block {number + 1}", "exec"), names)
    assert RUNNABLE[page] in capsys.readouterr().out
    if page in ("README.md", "docs/quickstart.md"):
        assert gp.Circuit.load(tmp_path / "ioi-circuit").graph == names["model"].graph


def test_every_page_with_python_is_run():
    assert {page for page in PAGES if blocks(page, "python")} == set(RUNNABLE)


@pytest.mark.parametrize("page", [page for page in PAGES if "changelog" not in page])
def test_every_name_of_the_library_exists(page):
    for name in set(re.findall(r"\bgp\.([A-Za-z_]+(?:\.[a-z_]+)?)", PAGES[page])):
        thing = gp
        for part in name.split("."):
            thing = getattr(thing, part)
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("graphprune"):
                module = __import__(node.module, fromlist=["_"])
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_reference_lists_every_public_name():
    """By the name that users import it by; a module's own list says what it has."""
    listed = set(re.findall(r"^\.\. (?:auto|py:)\w+:: (\S+)$", API, re.MULTILINE))
    modules = {name for name in gp.__all__ if inspect.ismodule(getattr(gp, name))}
    wanted = {f"graphprune.{name}" for name in set(gp.__all__) - modules}
    wanted.add("graphprune.export.export")  # the function is called like its module
    modules |= {"capabilities"}
    for module in modules:
        for name in importlib.import_module(f"graphprune.{module}").__all__:
            shown = name in gp.__all__ or module == "methods"  # methods: for those who write one
            wanted |= set() if shown else {f"graphprune.{module}.{name}"}
    assert listed == wanted


def test_the_readme_is_read_in_five_minutes():
    assert len(TEXT.splitlines()) <= 220
    assert max(map(len, TEXT.split("\n\n"))) < 3000


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_the_two_commands(page):
    shown = "".join(blocks(page, "bash")).splitlines()
    assert set(INSTALL) <= set(shown)
    if page == "README.md":
        assert shown[:2] == INSTALL


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
    for page in PAGES
    for block in blocks(page, "bash")
    for line in re.split(r"\n| && ", block)
    if line.startswith("graphprune ")
]


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
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
    text = PAGES["docs/supported.md"]
    behind = text[text.index(heading) :]
    table = re.search(r"(?:^\|.*\n)+", behind, re.MULTILINE)
    assert table is not None
    return [row.strip("| ").split(" | ") for row in table.group().splitlines()[2:]]


def quoted(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_tables_list_what_there_is():
    models = [*rows("## Models"), *rows("### Encoders, vision, encoder-decoders")]
    architectures = quoted([row[0] for row in models])
    assert architectures == {name for known in gp.supported().values() for name in known}
    methods = rows("## Methods")
    assert quoted([row[1] for row in methods]) == set(gp.method_names())
    tasks = {row[0].split("`")[1] for row in rows("## Tasks")}
    assert tasks == set(gp.tasks.TASKS)


def test_every_example_is_counted():
    scripts = [p for p in (ROOT / "examples").glob("*.py") if p.name != "small_models.py"]
    assert len(scripts) == 10
    assert "ten scripts" in PAGES["docs/quickstart.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    """In the repository as it is read on a code host; the documentation's build checks headings."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
        assert ((ROOT / page).parent / target).is_file(), target
