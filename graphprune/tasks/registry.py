"""The built-in tasks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from graphprune.core.task import Task
from graphprune.errors import unknown_name
from graphprune.tasks.agreement import subject_verb_agreement
from graphprune.tasks.booleans import boolean_expressions
from graphprune.tasks.docstrings import docstring
from graphprune.tasks.indirect_object import ioi
from graphprune.tasks.lookups import antonyms, capitals, successor
from graphprune.tasks.pronouns import gender_because, gendered_pronoun
from graphprune.tasks.repeats import induction
from graphprune.tasks.years import greater_than
from graphprune.util.checks import require_one_of

_GENERATORS: tuple[Callable[..., Task], ...] = (
    ioi, greater_than, gendered_pronoun, gender_because, boolean_expressions, induction,
    subject_verb_agreement, docstring, capitals, antonyms, successor,
)  # fmt: skip
TASKS = {generator.__name__: generator for generator in _GENERATORS}


def make(name: str, tokenizer: Any, **options: Any) -> Task:
    """The built-in task ``name``; options are those of its function in :mod:`graphprune.tasks`.

    Raises:
        InputError: for an unknown name (listing the known ones) or unknown options.

    Example:
        >>> make("ioi", tokenizer, n=4, corruption="swap")
        Task('ioi', 4 examples, metric='logit_diff')
    """
    require_one_of(name, TASKS, "task")
    known = list(inspect.signature(TASKS[name]).parameters)[1:]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise unknown_name(f"option of task {name!r}", unknown[0], known)
    return TASKS[name](tokenizer, **options)
