"""Tasks: generators of clean and corrupted prompts for any tokenizer, and the user's own files."""

from typing import TYPE_CHECKING, Any

from graphprune.tasks.agreement import subject_verb_agreement
from graphprune.tasks.booleans import boolean_expressions
from graphprune.tasks.connectomes import celegans, fly
from graphprune.tasks.docstrings import docstring
from graphprune.tasks.files import read_csv, read_jsonl
from graphprune.tasks.graphs import graphs, nodes, patterns
from graphprune.tasks.indirect_object import ioi
from graphprune.tasks.inputs import masked_tokens, sequences, text_classes
from graphprune.tasks.lookups import antonyms, capitals, successor
from graphprune.tasks.pairs import TokenPairs
from graphprune.tasks.pronouns import gender_because, gendered_pronoun
from graphprune.tasks.registry import TASKS, make
from graphprune.tasks.regressions import regression
from graphprune.tasks.repeats import induction
from graphprune.tasks.vocabulary import vocabulary
from graphprune.tasks.years import greater_than
from graphprune.util.attributes import suggest_names

if TYPE_CHECKING:
    from graphprune.mib.data import MIB_TASKS, mib

__all__ = [
    "MIB_TASKS",
    "TASKS",
    "TokenPairs",
    "antonyms",
    "boolean_expressions",
    "capitals",
    "celegans",
    "docstring",
    "fly",
    "gender_because",
    "gendered_pronoun",
    "graphs",
    "greater_than",
    "induction",
    "ioi",
    "make",
    "masked_tokens",
    "mib",
    "nodes",
    "patterns",
    "read_csv",
    "read_jsonl",
    "regression",
    "sequences",
    "subject_verb_agreement",
    "successor",
    "text_classes",
    "vocabulary",
]


def __getattr__(name: str) -> Any:
    # MIB's data sets stand with the rest of that benchmark, which knows this package.
    if name in ("MIB_TASKS", "mib"):
        from graphprune.mib import data

        return getattr(data, name)
    raise AttributeError(f"module 'graphprune.tasks' has no attribute {name!r}")


suggest_names(__name__)
