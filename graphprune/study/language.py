"""Language models of a study, and the prompts that each seed draws.

A model's folder is known by the contents of its files, so that a finished study is read without
loading it. Whatever is kept in memory from one job to the next is kept by contents too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.core.contents import file_fingerprint, files_fingerprint, fingerprint
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import InputError

from .by_name import choose_model, choose_task, load_tokenizer, prompt_files

__all__ = ["StoredModel", "forget", "prompts", "stored_model"]

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


def stored_model(model: str, dtype: str) -> StoredModel:
    """The model of a folder, a hub id or ``smollm2``."""
    folder = choose_model(model).place() or _snapshot(model)
    if folder is None:  # not here yet
        _loaded(model, dtype, "", None)
        folder = _snapshot(model)
    state = "" if folder is None else files_fingerprint(folder, ("*",))
    if folder is None or not _whole(folder):
        loaded = _loaded(model, dtype, state, folder)
        return StoredModel(loaded.tokenizer, loaded.model, None, state)
    weights = fingerprint("files", files_fingerprint(folder, _WEIGHTS), dtype)
    tokenizer = _tokenizer(str(folder), state)
    return StoredModel(
        tokenizer, lambda: _loaded(model, dtype, state, folder).model, weights, state
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
    return [
        Path(part).name
        for path in folder.glob("*.index.json")
        for part in json.loads(path.read_text(encoding="utf-8")).get("weight_map", {}).values()
    ]


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
def _loaded(model: str, dtype: str, state: str, folder: Path | None) -> Any:
    """The model in this ``state`` of its folder; raises :class:`InputError` if it is another."""
    loaded = choose_model(model, dtype=dtype).load()
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


def prompts(
    task: str,
    model: StoredModel,
    count: int,
    seed: int,
    metric: str | None,
    batch_size: int | None,
    settings: Sequence[str],
) -> Iterator[Task]:
    """Tasks to take ``count`` prompts from, larger and larger; each seed's own.

    A file is read whole and put in a random order by the seed; a built-in task draws by the seed.
    """
    options: dict[str, Any] = {
        "metric": metric,
        "batch_size": batch_size,
        "task_set": tuple(settings),
    }
    files = prompt_files(task)
    if files:
        state = fingerprint([file_fingerprint(path) for path in files], model.state)
        key = (task, state, fingerprint(options))
        if key not in _LAST:  # kept for the next seed
            _LAST.clear()
            _LAST[key] = choose_task(task, **options)(model.tokenizer)
        whole = _LAST[key]
        if len(whole) < count:
            raise InputError(
                f"{task} holds {len(whole)} prompts, but training and test take {count}; ask for "
                "fewer"
            )
        order = np.random.default_rng(seed).permutation(len(whole))
        yield whole.subset(order.tolist())
        return
    for extra in (1, 2, 4):
        yield choose_task(task, examples=count * extra, seed=seed, **options)(model.tokenizer)


_LAST: dict[tuple[str, str, str], Task] = {}
