"""Models and tasks by the names that a user gives: folders, hub ids, files, kinds of systems.

``choose_model`` and ``choose_task`` refuse what can be refused before anything is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import (
    GraphPruneError,
    InputError,
    UnsupportedModelError,
    nearest,
    unknown_name,
)
from graphprune.study.settings import known_name, pairs, same_name, task_settings
from graphprune.util.checks import usable
from graphprune.util.progress import hugging_face_bars

if TYPE_CHECKING:
    from graphprune.core.model import MaskedModel
    from graphprune.core.task import Task

__all__ = [
    "Loaded",
    "ModelChoice",
    "SystemTasks",
    "choose_model",
    "choose_task",
    "load_tokenizer",
    "prompt_files",
]

PROMPT_FILES = (".jsonl", ".csv")


@dataclass(frozen=True)
class Loaded:
    """A wrapped model and its tokenizer."""

    model: MaskedModel
    tokenizer: Any
    name: str


@dataclass(frozen=True)
class SystemTasks:
    """The tasks of a kind of system, by its own function; they stand in a tokenizer's place."""

    kind: str

    def _case(self, task: str | None, train: int, seed: int, options: dict[str, Any]) -> Any:
        from graphprune.study.cases import case_of

        return case_of(self.kind, task, train=train, test=1, seed=seed, options=options)

    def model(self) -> MaskedModel:
        """The system's model."""
        model: MaskedModel = self._case(None, 1, 0, {}).model
        return model

    def task(self, name: str, examples: int | None, seed: int, options: dict[str, str]) -> Task:
        """The system's task ``name`` with so many examples (default 100)."""
        typed = {k: int(v) if v.isdigit() else v for k, v in options.items()}
        task: Task = self._case(name, examples or 100, seed, typed).train
        return task


@dataclass(frozen=True)
class ModelChoice:
    """A model that is known to be there, before it is loaded.

    ``folder`` is where it lies on this machine, or a GGUF file; ``None``: the hub has it, or it is
    fetched. Where a kind of system was named, ``system`` brings the model and its tasks. ``nodes``:
    how fine a language model's are, as ``gp.wrap``'s.
    """

    name: str
    folder: Path | None = None
    on_hub: bool = False
    system: SystemTasks | None = None
    dtype: str = "auto"
    device: str = "auto"
    tokenizer: str | None = None
    nodes: str = "auto"

    def place(self, *, quiet: bool = True) -> Path | None:
        """The model's folder (or GGUF file), fetched if need be; ``None`` for a hub's id."""
        if self.folder is None and not self.on_hub:
            from graphprune.util.fetch import fetch

            return fetch(self.name, quiet=quiet)
        return self.folder

    def load(self, note: Callable[[str], None] | None = None) -> Loaded:
        """The wrapped model with its tokenizer.

        ``note`` takes a line about what is going on; with it downloads show their progress.
        """
        if self.system is not None:
            return Loaded(self.system.model(), self.system, self.name)
        from graphprune.core.registry import wrap
        from graphprune.tasks.encoding import know_start

        module = self.load_module(note)
        source = self.place()
        with hugging_face_bars(note is not None and source is None):
            if self.tokenizer is not None:
                tokenizer = load_tokenizer(self.tokenizer)
            elif module.main_input_name == "pixel_values":
                tokenizer = None
            else:
                tokenizer = _tokenizer(self.name, source)
        know_start(tokenizer, module.config)
        fine = {} if self.nodes == "auto" else {"nodes": self.nodes}
        return Loaded(wrap(module, **fine), tokenizer, self.name)

    def load_module(self, note: Callable[[str], None] | None = None) -> Any:
        """The model on its device, in its dtype; of a system the masked model itself."""
        if self.system is not None:
            return self.system.model()
        import torch

        source = self.place(quiet=note is None)
        if note is not None:
            note(f"loading {self.name}")
        dtype = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        with hugging_face_bars(note is not None and source is None):
            module = _weights(self.name, source, dtype, _device(self.device))
        # Where the folder lies is nobody's business but the user's; this name goes into files.
        module.config._name_or_path = self.name if self.on_hub else Path(self.name).resolve().name
        return module.eval()


def choose_model(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    tokenizer: str | None = None,
    nodes: str = "auto",
) -> ModelChoice:
    """The model of a folder or GGUF file, a kind of system, an artifact, or a hub id.

    A kind of system (``argnn-digits``, ...) brings its own tasks in the tokenizer's place.

    Raises :class:`InputError`, at once, where neither this machine nor the hub has it.
    """
    choice = ModelChoice(model, dtype=dtype, device=device, tokenizer=tokenizer, nodes=nodes)
    if device != "auto":
        _device(device)
    path = usable(Path(model).expanduser())
    if path.is_dir() or (path.suffix.lower() == ".gguf" and path.is_file()):
        return replace(choice, folder=path)
    looks_like_a_path = model.startswith((".", "~", os.sep)) or model.count("/") > 1
    if looks_like_a_path or path.exists():
        raise InputError(
            "expected the folder of a model that save_pretrained wrote, or a .gguf file, but "
            f"{path} is {'a file of another kind' if path.exists() else 'not there'}"
        )
    if "/" in model:
        return replace(choice, folder=_on_hub(model, []), on_hub=True)
    from graphprune.study.cases import system_names
    from graphprune.util.fetch import ARTIFACTS

    kinds = [kind for kind in system_names() if kind != "language"]
    kind, artifact = same_name(model, kinds), same_name(model, ARTIFACTS)
    if kind is not None:
        return replace(choice, name=kind, system=SystemTasks(kind))
    if artifact is not None:
        return replace(choice, name=artifact)
    return replace(choice, folder=_on_hub(model, [*kinds, "smollm2"]), on_hub=True)


def _on_hub(name: str, others: Sequence[str]) -> Path | None:
    """The folder in the hub's cache where the hub cannot be reached, else ``None``.

    Asks once, without the retries of a download. Raises :class:`InputError` where neither has it;
    ``others`` are names that the user may have meant.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url
    from huggingface_hub import try_to_load_from_cache as cached

    hub: Any = errors  # its HTTPError is another package's, by the version of the hub's client
    folder: Path | None = None
    try:
        files = [cached(name, file) for file in ("config.json", "adapter_config.json")]
        folder = next((Path(file).parent for file in files if isinstance(file, str)), None)
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10)
    except hub.HFValidationError:
        reason = "it is no Hugging Face id (owner/name)"
    except hub.RepositoryNotFoundError:
        reason = "the hub has no model of this id, or only for those who are logged in"
    except hub.HfHubHTTPError:
        return None  # the hub answered: what it refuses, loading says
    except (hub.HTTPError, OSError) as error:
        if folder is not None:
            return folder
        reason = f"the hub cannot be asked ({_first_line(error)})"
    else:
        return None
    close = nearest(name, others)
    meant = f" Did you mean {close!r}?" if close else ""
    raise InputError(
        f"no model {name!r}: no folder of this name is in {Path.cwd()}, the hub's cache "
        f"({constants.HF_HUB_CACHE}) does not hold it, and {reason}.{meant} Give the folder of a "
        "downloaded model, or smollm2, which 'graphprune fetch smollm2' gets once"
    )


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"the device {name} cannot be used: {_first_line(error)}") from None
    return device


def _weights(name: str, source: Path | None, dtype: Any, device: Any) -> Any:
    """The model, whose weights are read onto the device itself where accelerate can do that."""
    from importlib.util import find_spec

    directly = device.type != "cpu" and find_spec("accelerate") is not None
    with _loading(f"the model {name!r}", source):
        loaded: Any = _class(_origin(name, source)).from_pretrained(
            **_origin(name, source), dtype=dtype, output_loading_info=True,
            **({"device_map": {"": device}} if directly else {}),
        )  # fmt: skip
    module, info = loaded
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise InputError(
            f"the checkpoint of {name!r} lacks {len(missing)} of the model's weights, which would "
            f"be random: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
        )
    there = {p.device for p in module.parameters()} == {device}  # not all quantised ones can move
    return module if there else module.to(device)


# Heads of models that are no causal language models, as their configurations name them.
_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification",
          "ForImageClassification", "ForImageClassificationWithTeacher",
          "VisionModelWithProjection")  # fmt: skip


def _class(origin: Mapping[str, Any]) -> Any:
    """The class that loads a model: its own where that is an encoder's or encoder-decoder's."""
    import transformers

    config: dict[str, Any] = {}
    if "gguf_file" not in origin:
        with suppress(OSError):  # an adapter's folder has no configuration
            config = transformers.PreTrainedConfig.get_config_dict(**origin)[0]
    for name in config.get("architectures") or ():
        texts = name.endswith(("ForConditionalGeneration", "MTModel"))
        whole = texts and config.get("is_encoder_decoder")
        if whole or name.endswith(_HEADS):
            return getattr(transformers, name, transformers.AutoModelForCausalLM)
    return transformers.AutoModelForCausalLM


def load_tokenizer(name: str) -> Any:
    """A tokenizer from a folder or a Hugging Face id."""
    return _tokenizer(name, choose_model(name).place())


def _tokenizer(name: str, source: Path | None) -> Any:
    from transformers import AutoTokenizer

    with _loading(f"the tokenizer of {name!r}", source):
        return AutoTokenizer.from_pretrained(**_origin(name, source))


def _origin(name: str, source: Path | None) -> dict[str, Any]:
    """What ``from_pretrained`` is asked for."""
    if source is None or source.is_dir():
        place = str(source or name)
        return {"pretrained_model_name_or_path": place, "local_files_only": source is not None}
    return {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}


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
            raise InputError(f"cannot load {what} from the Hugging Face hub: {reason}") from error
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


def choose_task(
    task: str,
    *,
    system: SystemTasks | None = None,
    examples: int | None = None,
    seed: int | None = None,
    metric: str | None = None,
    batch_size: int | None = None,
    task_set: Sequence[str] = (),
) -> Callable[[Any], Task]:
    """A function that makes the task of a tokenizer; names and settings are checked before.

    Args:
        task: a built-in task, a file of prompts, a folder with one of MIB's data sets, or one of
            the tasks of ``system``.
        system: a kind of system, whose tasks stand in the tokenizer's place.
        examples: how many; ``None``: the task's own number.
        seed: of the draws; ``None``: 0.
        metric, batch_size: in place of the task's own.
        task_set: further settings as ``NAME=VALUE``.
    """
    common: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    if metric is not None:
        from graphprune.core.metrics import METRICS

        common["metric"] = METRICS[known_name("metric", metric, METRICS)]
    seed = 0 if seed is None else seed
    if system is not None:
        options = pairs(task_set, "--task-set")
        return lambda tokenizer: replace(tokenizer.task(task, examples, seed, options), **common)
    from graphprune.core.task import Task
    from graphprune.tasks import TASKS

    path = usable(Path(task).expanduser())
    builtin = same_name(task, TASKS)
    if path.suffix.lower() in PROMPT_FILES:  # as `prompt_files` says
        if not path.is_file():
            raise InputError(f"the file of prompts {path} is not there")
        read = Task.from_jsonl if path.suffix.lower() == ".jsonl" else Task.from_csv
        settings = task_settings(Task.from_pairs, task_set, f"a task from {path.name}")

        def from_file(tokenizer: Any) -> Task:
            whole = read(path, tokenizer, **settings, **common)
            return whole if examples is None else whole.take(examples)

        return from_file
    if builtin is not None:
        settings = task_settings(TASKS[builtin], task_set, f"task {builtin!r}")
        settings |= common if examples is None else {"n": examples, **common}
        return lambda tokenizer: TASKS[builtin](tokenizer, seed=seed, **settings)
    from graphprune.mib.data import holds_data_set, mib

    if holds_data_set(path):
        settings = task_settings(mib, task_set, f"a task from the folder {path.name}")
        return lambda tokenizer: mib(path, tokenizer, examples, **settings, **common)
    if path.suffix and path.exists():
        raise InputError(f"files of prompts end in .jsonl or .csv, got {path}")
    raise unknown_name(
        "task", task, TASKS, "a .jsonl or .csv file, or a folder with one of MIB's data sets"
    )


def prompt_files(name: str) -> list[Path]:
    """The files that the task ``name`` reads its prompts from; none for a built-in task."""
    from graphprune.mib.data import data_files
    from graphprune.tasks import TASKS

    path = usable(Path(name).expanduser())
    if path.suffix.lower() in PROMPT_FILES:
        return [path]
    builtin = same_name(name, TASKS) is not None
    return [] if builtin or not path.is_dir() else data_files(path)
