"""The command line's page, from the commands themselves.

``{command-line}`` puts a section for each command of ``graphprune``: what it does, how it is
called, its arguments and its options with their defaults, grouped as ``--help`` groups them.
"""

from __future__ import annotations

import re
from typing import Any

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from graphprune.cli.app import app as commands


def plain(text: str) -> str:
    """Text without the markup of rich and of typer's line control."""
    return re.sub(r"\[/?[a-z][a-z ]*\]", "", text.replace("\b", "")).strip()


def paragraphs(text: str) -> list[nodes.Node]:
    """A paragraph for each; one that is indented or has prompts stays as it is typed."""
    made: list[nodes.Node] = []
    for part in plain(text).split("\n\n"):
        if any(line.lstrip().startswith(("$ ", "graphprune ")) for line in part.splitlines()):
            made.append(nodes.literal_block(part, part, language="text"))
        else:
            made.append(inline(" ".join(part.split())))
    return made


def inline(text: str) -> nodes.paragraph:
    """A paragraph in which text between backquotes is code."""
    made = nodes.paragraph()
    for place, piece in enumerate(re.split(r"`+", text)):
        if piece:
            made += nodes.literal(piece, piece) if place % 2 else nodes.Text(piece)
    return made


def entry(names: str, text: str) -> nodes.definition_list_item:
    """A parameter's names over its help."""
    definition = nodes.definition("", inline(plain(text)))
    return nodes.definition_list_item("", nodes.term(names, names), definition)


class CommandLine(SphinxDirective):
    """A section for every command."""

    def run(self) -> list[nodes.Node]:
        """Gives the sections."""
        group: Any = typer.main.get_command(commands)
        return [self.section(name, command) for name, command in group.commands.items()]

    def section(self, name: str, command: Any) -> nodes.section:
        """One command."""
        context = command.make_context(f"graphprune {name}", [], resilient_parsing=True)
        title = f"graphprune {name}"
        made = nodes.section(ids=[f"graphprune-{name}"], names=[title])
        made += nodes.title(title, title)
        made += paragraphs(command.help or "")
        usage = command.get_usage(context).removeprefix("Usage:").strip()
        made += nodes.literal_block(usage, usage, language="text")
        groups: dict[str, nodes.definition_list] = {}
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)  # of hidden ones there is none
            if record is None or "--help" in parameter.opts:
                continue
            kind = "Options" if parameter.opts[0].startswith("-") else "Arguments"
            heading = getattr(parameter, "rich_help_panel", None) or kind
            if heading not in groups:
                groups[heading] = nodes.definition_list(classes=["command-options"])
            groups[heading] += entry(*record)
        for heading, entries in groups.items():
            made += nodes.rubric(heading, heading)
            made += entries
        if command.epilog:
            made += paragraphs(command.epilog)
        return made


def setup(app: Sphinx) -> dict[str, Any]:
    """Makes the directive known."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
