"""Models and tasks by the names that a user gives: folders, hub ids, files, kinds of systems."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import GraphPruneError, InputError, UnsupportedModelError, unknown_name

if TYPE_CHECKING:
    from graphprune.core.model import MaskedModel
    from graphprune.core.task import Task

__all__ = [
    "Loaded",
    "SystemTasks",
    "load_model",
    "load_task",
    "load_tokenizer",
    "model_folder",
    "prompt_files",
]


@dataclass(frozen=True)
class Loaded:
    """A wrapped model and its tokenizer."""

    model: MaskedModel
    tokenizer: Any
    name: str


@dataclass(frozen=True)
class SystemTasks:
    """The tasks of a kind of system, by its own function."""

    kind: str

    def _case(self, task: str | None, train: int, seed: int, options: dict[str, Any]) -> Any:
        from graphprune.study.systems import case_of

        return case_of(self.kind, task, train=train, test=1, seed=seed, options=options)

    def model(self) -> MaskedModel:
        """The system's model."""
        found: MaskedModel = self._case(None, 1, 0, {}).model
        return found

    def task(
        self,
        name: str,
        examples: int | None,
        seed: int,
        settings: Sequence[str],
        changes: dict[str, Any],
    ) -> Task:
        """The system's task ``name`` with so many examples (default 100)."""
        from dataclasses import replace

        from graphprune.study.settings import pairs

        given = pairs(settings, "--task-set")
        options = {k: int(v) if v.isdigit() else v for k, v in given.items()}
        found: Task = self._case(name, examples or 100, seed, options).train
        return replace(found, **changes)


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    tokenizer: str | None = None,
    note: Callable[[str], None] | None = None,
) -> Loaded:
    """The model ``name`` on ``device``, wrapped, with its tokenizer.

    ``note`` is told what is going on; with it downloads show their progress.

    A kind of system (``argnn-digits``, ...) brings its own tasks in the tokenizer's place.
    """
    import torch

    from graphprune.core.registry import wrap

    if not Path(name).exists():
        from graphprune.study.systems import system_names

        if name in system_names() and name != "language":
            own = SystemTasks(name)
            return Loaded(own.model(), own, name)

    place = _device(torch, device)
    source = model_folder(name, quiet=note is None)
    if note is not None:
        note(f"loading {name}")
    with _hugging_face_bars(note is not None and source is None):
        module = _weights(name, source, dtype if dtype == "auto" else getattr(torch, dtype))
        words = load_tokenizer(tokenizer) if tokenizer else _tokenizer(name, source)
    # Where the folder lies is nobody's business but the user's; this name goes into files.
    module.config._name_or_path = name if source is None else Path(name).resolve().name
    model = wrap(module.to(place).eval())
    return Loaded(model, words, name)


def _device(torch: Any, device: str) -> Any:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {device} cannot be used: {_first_line(error)}") from None
    return chosen


def model_folder(name: str, *, quiet: bool = True) -> Path | None:
    """The folder of a model that lies on this machine, or ``None`` for a Hugging Face id."""
    from graphprune.util.fetch import ARTIFACTS, fetch

    if name in ARTIFACTS and not Path(name).is_dir():
        return fetch(name, quiet=quiet)
    return _folder(name)


def _folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    looks_like_a_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if looks_like_a_path or path.exists():
        raise InputError(
            f"expected the folder of a model that save_pretrained wrote, but {path} is "
            f"{'a file' if path.exists() else 'not there'}"
        )
    return None


def _weights(name: str, source: Path | None, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with _loading(f"the model {name!r}", source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source or name, dtype=dtype, local_files_only=source is not None,
            output_loading_info=True,
        )  # fmt: skip
    module, info = loaded
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise InputError(
            f"the checkpoint of {name!r} lacks {len(missing)} of the model's weights, which would "
            f"be random: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
        )
    return module


def load_tokenizer(name: str) -> Any:
    """A tokenizer from a folder or a Hugging Face id."""
    return _tokenizer(name, _folder(name))


def _tokenizer(name: str, source: Path | None) -> Any:
    from transformers import AutoTokenizer

    with _loading(f"the tokenizer of {name!r}", source):
        return AutoTokenizer.from_pretrained(source or name, local_files_only=source is not None)


@contextmanager
def _loading(what: str, source: Path | None) -> Iterator[None]:
    try:
        yield
    except GraphPruneError:
        raise
    except Exception as error:
        # transformers, its hub client, tokenizers and safetensors each have errors of their own.
        reason = _first_line(error)
        if source is None:
            hint = (
                "\nNo folder of this name is here, so it was taken for a Hugging Face id. Without "
                "a network give the folder of a downloaded model, or --model smollm2 after "
                "'graphprune fetch smollm2'."
            )
            raise InputError(f"cannot load {what}: {reason}{hint}") from error
        if "nrecognized" in reason or "does not recognize" in reason:
            raise UnsupportedModelError(f"cannot load {what} from {source}: {reason}") from error
        raise InputError(
            f"cannot load {what} from {source}: {reason}\nExpected a folder that save_pretrained "
            "wrote, with the tokenizer's files beside the model's."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


@contextmanager
def _hugging_face_bars(shown: bool) -> Iterator[None]:
    from transformers.utils import logging as hf_logging

    logging: Any = hf_logging
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        yield
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def load_task(
    name: str,
    tokenizer: Any,
    *,
    examples: int | None,
    seed: int,
    metric: str | None,
    batch_size: int | None,
    settings: Sequence[str] = (),
) -> Task:
    """The built-in task or the file of prompts ``name``."""
    from graphprune.core.metrics import as_metric
    from graphprune.core.task import Task
    from graphprune.study.settings import task_options
    from graphprune.tasks import TASKS

    common: dict[str, Any] = {}
    if metric is not None:
        common["metric"] = as_metric(metric)
    if batch_size is not None:
        common["batch_size"] = batch_size
    if isinstance(tokenizer, SystemTasks):
        return tokenizer.task(name, examples, seed, settings, common)
    path = Path(name).expanduser()
    readers = {".jsonl": Task.from_jsonl, ".csv": Task.from_csv}
    if path.suffix.lower() in readers:  # as `prompt_files` says
        options = task_options(Task.from_pairs, settings, f"a task from {path.name}")
        task = readers[path.suffix.lower()](path, tokenizer, **options, **common)
        return task if examples is None else task.take(examples)
    from graphprune.mib.data import holds_data_set, mib

    if name.replace("-", "_") not in TASKS and holds_data_set(path):
        options = task_options(mib, settings, f"a task from the folder {path.name}")
        return mib(path, tokenizer, examples, **options, **common)
    if path.suffix and path.exists():
        raise InputError(f"files of prompts end in .jsonl or .csv, got {path}")
    plain = name.replace("-", "_")
    if plain not in TASKS:
        raise unknown_name(
            "task", name, TASKS, "a .jsonl or .csv file, or a folder with one of MIB's data sets"
        )
    options = task_options(TASKS[plain], settings, f"task {plain!r}")
    count = {} if examples is None else {"n": examples}
    return TASKS[plain](tokenizer, seed=seed, **count, **options, **common)


def prompt_files(name: str) -> list[Path]:
    """The files that the task ``name`` reads its prompts from; none for a built-in task."""
    from graphprune.mib.data import data_files
    from graphprune.tasks import TASKS

    path = Path(name).expanduser()
    if path.suffix.lower() in (".jsonl", ".csv"):
        return [path]
    return [] if name.replace("-", "_") in TASKS or not path.is_dir() else data_files(path)
