"""MIB's data sets (``mib-bench`` on the Hugging Face hub) from a local copy, in the hub's format.

Rules are those of the benchmark's own loader: which column holds the counterfactual, which texts
are answer and distractor, which rows are left out, and that an answer's id is the first one of the
text tokenised by itself. A row whose answer and distractor begin with one token stays, as there:
its logit difference is 0 in every circuit. Pairs whose prompts differ in length are dropped; the
benchmark's code stops at them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphprune.core.metrics import Metric
from graphprune.core.task import Task
from graphprune.errors import InputError, MissingExtraError
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.records import FileRecord
from graphprune.util.checks import usable
from graphprune.util.readers import file_bytes, json_value

log = logging.getLogger("graphprune.tasks")
Row = Mapping[str, Any]
_FILES = (".parquet", ".jsonl", ".json")
_PREFERRED = "4_answer_choices"  # the benchmark's configuration of copycolors_mcqa


@dataclass(frozen=True)
class _Rule:
    """The rule for reading rows of one kind.

    ``texts`` gives answer, distractor and other texts; a row is left out where these have not all
    one number of tokens, which is one for a ``single`` rule.
    """

    needed: tuple[str, ...]
    counterfactual: str
    texts: Callable[[Row, Row], Sequence[str]]
    single: bool = False


def _names(row: Row, _: Row) -> list[str]:
    metadata = row["metadata"]
    third = ["random_c"] if metadata.get("random_c") is not None else []
    return [f" {metadata[key]}" for key in ("indirect_object", "subject", *third)]


def _labels(*rows: Row) -> list[str]:
    return [str(row["choices"]["label"][row["answerKey"]]) for row in rows]


def _results(*rows: Row) -> list[str]:
    return [str(row["label"]) for row in rows]


_RULES = {
    "ioi": _Rule(("prompt", "metadata"), "s2_io_flip_counterfactual", _names),
    "choice": _Rule(("prompt", "choices", "answerKey"), "symbol_counterfactual", _labels),
    "arithmetic": _Rule(
        ("prompt", "label", "operator"), "random_counterfactual", _results, single=True
    ),
}

MIB_TASKS = {
    "ioi": "ioi",
    "mcqa": "copycolors_mcqa",
    "arithmetic-addition": "arithmetic_addition",
    "arithmetic-subtraction": "arithmetic_subtraction",
    "arc-easy": "arc_easy",
    "arc-challenge": "arc_challenge",
}
"""Names of tasks in the benchmark, and of their data sets on the hub."""


def mib(
    folder: str | Path,
    tokenizer: Any,
    n: int | None = None,
    *,
    split: str = "train",
    config: str | None = None,
    counterfactual: str | None = None,
    operator: str | None = None,
    metric: str | Metric | Callable[..., Any] = "logit_diff",
    batch_size: int = 32,
    name: str | None = None,
    seed: int = 0,
) -> Task:
    """A task from a folder that holds one of MIB's data sets as the hub has it.

    Args:
        folder: a copy of the data set's repository: parquet (or JSON-lines) files named after
            their split, such as ``data/train-00000-of-00001.parquet``.
        tokenizer: a Hugging Face tokenizer.
        n: the first so many rows that are not left out; ``None`` means all.
        split: ``"train"``, on which MIB finds circuits; its own scripts score on ``"validation"``
            and its leaderboard on a ``"test"`` split.
        config: the data set's configuration, a folder in it; by default the only one, or
            ``4_answer_choices`` as the benchmark takes it.
        counterfactual: the column of the corrupted prompt, with or without ``_counterfactual``;
            by default the benchmark's: ``s2_io_flip``, ``symbol`` or ``random``.
        operator: for arithmetic, ``"+"`` or ``"-"``; by default the one that the rows have.
        metric, batch_size: as of any task.
        name: shown in tables; by default the folder's.
        seed: not read: the rows stand in the file's order.

    The task's ``notes`` say the split, how many rows were left out or dropped, and in how many
    answer and distractor share their first token (``shared_token``; also logged): these have a
    logit difference of 0, and by accuracy the wrong choice, whatever the model does.

    Raises:
        InputError: no such folder, split, configuration or column, naming those that are there;
            or no row is left.
        MissingExtraError: a parquet file, and pyarrow is not installed.

    Example:
        >>> gp.tasks.mib("ioi", tokenizer, split="test")  # doctest: +SKIP
    """
    root = Path(folder)
    rows = mib_rows(root, split, config)
    kind = _kind(rows[0], root)
    rule = _RULES[kind]
    column = _column(rows[0], counterfactual, rule.counterfactual, root)
    encoder = Encoder(tokenizer)
    wanted = _operator(rows, operator, root) if kind == "arithmetic" else None
    records: list[FileRecord] = []
    left_out = 0
    for number, row in enumerate(rows):
        where = f"{root.name} {split} row {number}"
        other: Any = row.get(column)
        try:
            usable = isinstance(other, Mapping) and other.get("prompt") is not None
            usable = usable and (wanted is None or row["operator"] == wanted)
            ids = [encoder.body(text) for text in rule.texts(row, other)] if usable else []
            lengths = {len(tokens) for tokens in ids}
            if len(lengths) != 1 or (rule.single and lengths != {1}):
                left_out += 1
                continue
            first = {"answer": ids[0][:1], "distractor": ids[1][:1]}
            record = {"clean": row["prompt"], "corrupt": other["prompt"], **first}
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"{where} is not as MIB's {kind} rows are: {type(error).__name__} {error}"
            ) from None
        records.append(FileRecord(record, where, may_share=True))
        if n is not None and len(records) == n:
            break
    if not records:
        raise InputError(f"all {left_out} rows of {root} {split} are left out by MIB's rules")
    task = Task.from_pairs(
        records, tokenizer, metric=metric, name=name or root.name, on_mismatch="drop",
        batch_size=batch_size,
    )  # fmt: skip
    shared = sum(
        int((batch.answer == batch.distractor).sum())
        for batch in task.batches()
        if batch.answer is not None and batch.distractor is not None
    )
    if shared:
        log.warning(
            "%d of %d rows of %s have an answer and a distractor that begin with the same token; "
            "they stay, as in the benchmark's loader: their logit difference is always 0",
            shared, len(task), root.name,
        )  # fmt: skip
    notes = {"split": split, "counterfactual": column, "left_out": left_out}
    return replace(task, notes={**task.notes, **notes, "shared_token": shared})


def mib_rows(folder: str | Path, split: str, config: str | None = None) -> list[Row]:
    """The rows of a split as plain values; see :func:`mib`."""
    root = Path(folder)
    files = _files_of(root, config)
    if split not in files:
        known = ", ".join(sorted(files))
        raise InputError(f"{root} has no split {split!r}; it has {known}")
    rows = [row for path in files[split] for row in _read(path)]
    if not rows:
        raise InputError(f"the split {split!r} of {root} has no rows")
    return rows


def split_names(folder: str | Path, config: str | None = None) -> list[str]:
    """The splits that a data set's folder has; see :func:`mib` for ``config``."""
    return sorted(_files_of(Path(folder), config))


def _files_of(root: Path, config: str | None) -> dict[str, list[Path]]:
    """The files of each split of one configuration."""
    if not usable(root).is_dir():
        raise InputError(f"expected the folder of a data set, but {root} is not there")
    files = _splits(root)
    if not files:
        raise InputError(
            f"{root} holds no data set as the hub has them: no .parquet or .jsonl file is named "
            "after a split, such as data/train-00000-of-00001.parquet"
        )
    if config is None and len(files) > 1 and _PREFERRED in files:
        config = _PREFERRED
    if config is None and len(files) > 1:
        raise InputError(f"{root} has several configurations; give config= one of {list(files)}")
    chosen = next(iter(files)) if config is None else config
    if chosen not in files:
        raise InputError(f"{root} has no configuration {chosen!r}; it has {list(files)}")
    return files[chosen]


def holds_data_set(folder: Path) -> bool:
    """``True`` for a folder with files that are named after splits."""
    return folder.is_dir() and bool(_splits(folder))


def data_files(folder: Path) -> list[Path]:
    """The files of a data set's folder that are named after splits."""
    named = (paths for splits in _splits(folder).values() for paths in splits.values())
    return sorted(path for paths in named for path in paths)


def _splits(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Files by configuration and split, at most two folders deep."""
    files: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(path for depth in ("*", "*/*", "*/*/*") for path in root.glob(depth)):
        parts = path.relative_to(root).parts
        if path.suffix not in _FILES or any(part.startswith(".") for part in parts):
            continue
        named = re.match(r"(train|validation|test)\b", path.name.replace("_", "-"))
        inside = [part for part in parts[:-1] if part not in ("data", "default")]
        split = named.group(1) if named else None
        if split is None and inside and inside[-1] in ("train", "validation", "test"):
            split = inside.pop()
        if split is not None:
            files.setdefault("/".join(inside), {}).setdefault(split, []).append(path)
    return files


def _read(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise MissingExtraError(
                "parquet files are read by pyarrow; install it by pip install 'graphprune[parquet]'"
            ) from error
        try:
            rows: list[Row] = parquet.read_table(path).to_pylist()
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise InputError(f"cannot read {path}: {error}") from None
        return rows
    try:
        lines = file_bytes(path).decode("utf-8").splitlines()
        values = [json_value(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no JSON lines: {error}") from None
    if not all(isinstance(row, dict) for row in values):
        raise InputError(f"{path}: every line should be an object")
    return values


def _kind(row: Row, root: Path) -> str:
    metadata = row.get("metadata")
    if isinstance(metadata, Mapping) and "indirect_object" in metadata:
        return "ioi"
    for kind in ("arithmetic", "choice"):
        if all(name in row for name in _RULES[kind].needed):
            return kind
    raise InputError(
        f"{root} is none of MIB's data sets: rows have prompt and metadata.indirect_object (ioi), "
        "prompt, choices and answerKey (mcqa, arc) or prompt, label and operator (arithmetic); "
        f"these have {', '.join(row)}"
    )


def _column(row: Row, given: str | None, usual: str, root: Path) -> str:
    known = [name for name in row if name.endswith("_counterfactual")]
    wanted = usual if given is None else given
    for name in (wanted, f"{wanted}_counterfactual"):
        if name in known:
            return name
    raise InputError(
        f"{root} has no counterfactual {wanted!r}; it has {', '.join(known) or 'none at all'}"
    )


def _operator(rows: list[Row], given: str | None, root: Path) -> str:
    operators = sorted({str(row.get("operator")) for row in rows})
    if given is None and len(operators) == 1:
        return operators[0]
    if given is None or given not in operators:
        raise InputError(f"{root} has the operators {operators}; give operator= one of them")
    return given
