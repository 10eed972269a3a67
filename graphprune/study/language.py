"""Language models of a study, and the prompts that each seed draws.

A model's folder is known by the contents of its files, so that a finished study is read without
loading it. Whatever is kept in memory from one job to the next is kept by contents too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from graphprune.core.contents import file_fingerprint, files_fingerprint, fingerprint
from graphprune.core.model import MaskedModel
from graphprune.core.overlap import fingerprint_table, without_overlap
from graphprune.core.task import Task
from graphprune.errors import GraphPruneError, InputError
from graphprune.util.checks import usable
from graphprune.util.readers import read_json, validated

from .by_name import PROMPT_FILES, choose_model, choose_task, load_tokenizer, prompt_files

__all__ = [
    "ModelNotAvailableError",
    "StoredModel",
    "forget",
    "held_out_prompts",
    "prompts",
    "require_known_task",
    "stored_model",
]

_WEIGHTS = ("config.json", "*.safetensors", "*.bin", "*.index.json", "*.pt", "*.h5", "*.msgpack")


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A language model and its tokenizer; the model is loaded when it is needed.

    ``weights`` is a fingerprint of what it is made of, ``None`` if only the loaded model tells;
    ``state`` one of all files, with the tokenizer's.
    """

    tokenizer: Any
    load: MaskedModel | Callable[[], MaskedModel]
    weights: str | None
    state: str


class ModelNotAvailableError(InputError):
    """A model that cannot be had: of no use to any of its system's cases."""


def stored_model(model: str, dtype: str, nodes: str = "auto") -> StoredModel:
    """The model of a folder, a hub id or ``smollm2``; ``nodes``: as ``gp.wrap``'s.

    Raises :class:`ModelNotAvailableError` where there is none, or it cannot be loaded.
    """
    try:
        return _stored_model(model, dtype, nodes)
    except GraphPruneError as error:
        raise ModelNotAvailableError(str(error)) from error


def _stored_model(model: str, dtype: str, nodes: str) -> StoredModel:
    folder = choose_model(model).place() or _snapshot(model)
    if folder is None:  # not here yet
        _loaded(model, dtype, nodes, "", None)
        folder = _snapshot(model)
    state = "" if folder is None else files_fingerprint(folder, ("*",))
    if folder is None or not _whole(folder):
        loaded = _loaded(model, dtype, nodes, state, folder)
        return StoredModel(loaded.tokenizer, loaded.model, None, state)
    fine = () if nodes == "auto" else (nodes,)
    weights = fingerprint("files", files_fingerprint(folder, _WEIGHTS), dtype, *fine)
    tokenizer = _tokenizer(str(folder), state)
    return StoredModel(
        tokenizer, lambda: _loaded(model, dtype, nodes, state, folder).model, weights, state
    )


def forget() -> None:
    """Lets go of what is kept in memory."""
    _loaded.cache_clear()
    _tokenizer.cache_clear()
    _LAST.clear()


def _whole(folder: Path) -> bool:
    """Whether all that the model is made of lies in the folder itself."""
    adapter = (folder / "adapter_config.json").exists()  # it names another model's weights
    return not adapter and all((folder / part).is_file() for part in _parts(folder))


def _parts(folder: Path) -> list[str]:
    """Files of weights that an index names, by their names alone."""
    indexes = (validated(_Index, read_json(p), p) for p in folder.glob("*.index.json"))
    return [Path(part).name for index in indexes for part in index.weight_map.values()]


class _Index(BaseModel):
    weight_map: dict[str, str] = {}


def _snapshot(model: str) -> Path | None:
    """The folder of a hub id's present revision in the hub's cache, if its weights are there."""
    from transformers.utils.hub import cached_file

    try:
        folder = Path(str(cached_file(model, "config.json"))).parent
    except OSError:  # loading will say what is wrong
        return None
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return folder if weights and _whole(folder) else None


@lru_cache(maxsize=1)
def _loaded(model: str, dtype: str, nodes: str, state: str, folder: Path | None) -> Any:
    """The model in this ``state`` of its folder; raises :class:`InputError` if it is another."""
    loaded = choose_model(model, dtype=dtype, nodes=nodes).load()
    if folder is not None and files_fingerprint(folder, ("*",)) != state:
        raise InputError(
            f"the files of the model {model!r} changed while the study ran; run the study again, "
            "it does what is new"
        )
    return loaded


@lru_cache(maxsize=1)
def _tokenizer(folder: str, state: str) -> Any:
    """The tokenizer of a folder in this ``state``."""
    return load_tokenizer(folder)


# -------------------------------------------------------------------- prompts


def require_known_task(task: str, options: Mapping[str, Any]) -> None:
    """Raises :class:`InputError` for a task that is not known, or for a setting that it lacks.

    A file that is not there passes: it may be there when the study runs.
    """
    names = [options[name] for name in ("train_file", "test_file") if name in options]
    if len(names) == 1:
        raise InputError("train_file and test_file go together; the other one is missing")
    settings = {k: v for k, v in options.items() if k not in _NO_SETTINGS}
    for name in names or [task]:
        path = usable(Path(str(name)).expanduser())
        if names and path.suffix.lower() not in PROMPT_FILES:
            raise InputError(f"files of prompts end in .jsonl or .csv, got {name}")
        if path.suffix.lower() not in PROMPT_FILES or path.is_file():
            choose_task(str(name), metric=options.get("metric"), task_set=_texts(settings))


_NO_SETTINGS = ("model", "dtype", "nodes", "metric", "batch_size", "train_file", "test_file")


def _texts(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


def prompts(
    task: str,
    model: StoredModel,
    count: int,
    seed: int,
    metric: str | None,
    batch_size: int | None,
    settings: Mapping[str, Any],
) -> Iterator[Task]:
    """Tasks to take ``count`` prompts from, larger and larger; each seed's own.

    A file is put in a random order by the seed; a built-in task draws by the seed.
    """
    options: dict[str, Any] = {
        "metric": metric, "batch_size": batch_size, "task_set": tuple(_texts(settings)),
    }  # fmt: skip
    files = prompt_files(task)
    if files:
        whole = _whole_file(task, files, model, options)
        _require(len(whole), count, f"training and test take {count}", task)
        yield _shuffled(whole, seed)
        return
    for extra in (1, 2, 4):
        yield choose_task(task, examples=count * extra, seed=seed, **options)(model.tokenizer)


def held_out_prompts(
    train_file: str,
    test_file: str,
    model: StoredModel,
    counts: tuple[int, int],
    seed: int,
    metric: str | None,
    batch_size: int | None,
    settings: Mapping[str, Any],
) -> tuple[Task, Task, list[str]]:
    """``counts`` prompts of one file to train on and of another to test on, drawn by the seed.

    Test prompts that the training file has too, drawn or not, are left out; a remark counts them.
    """
    options: dict[str, Any] = {
        "metric": metric, "batch_size": batch_size, "task_set": tuple(_texts(settings)),
    }  # fmt: skip
    train, test = (
        _whole_file(name, [Path(name)], model, options) for name in (train_file, test_file)
    )
    _require(len(train), counts[0], f"training takes {counts[0]}", train_file)
    own = without_overlap(test, fingerprint_table(train))
    left = 0 if own.task is None else len(own.task)
    remarks = []
    if own.dropped:
        remarks.append(
            f"{own.dropped} of the {len(test)} prompts of {Path(test_file).name} are prompts of "
            f"{Path(train_file).name} too and were left out of the test"
        )
    if own.task is None or left < counts[1]:
        why = "".join(f" ({remark})" for remark in remarks)
        raise InputError(
            f"{test_file} holds {left} prompts to test on{why}, but the test takes {counts[1]}; "
            "ask for fewer"
        )
    return (
        _shuffled(train, seed).take(counts[0]),
        _shuffled(own.task, seed).take(counts[1]),
        remarks,
    )


def _require(there: int, count: int, use: str, file: str) -> None:
    if there < count:
        raise InputError(f"{file} holds {there} prompts, but {use}; ask for fewer")


def _shuffled(task: Task, seed: int) -> Task:
    return task.subset(np.random.default_rng(seed).permutation(len(task)).tolist())


def _whole_file(
    task: str, files: Sequence[Path], model: StoredModel, options: Mapping[str, Any]
) -> Task:
    """All prompts of a file or of a folder's files; kept for the next seed."""
    for path in files:
        if not path.is_file():
            raise InputError(f"the file of prompts {path} is not there")
    state = fingerprint([file_fingerprint(path) for path in files], model.state)
    key = (task, state, fingerprint(options))
    if key not in _LAST:
        for old in list(_LAST)[:-1]:  # a training file and its test file stay together
            del _LAST[old]
        _LAST[key] = choose_task(task, **options)(model.tokenizer)
    return _LAST[key]


_LAST: dict[tuple[str, str, str], Task] = {}
