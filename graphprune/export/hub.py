"""Circuits on the Hugging Face hub: a repository with the circuit's two files, a card, a picture.

``huggingface_hub`` does the transfer, so its environment variables hold: ``HF_TOKEN``,
``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HOME``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import FetchError, InputError, MissingExtraError
from graphprune.export.card import CARD_NAME, PICTURE_NAME, card
from graphprune.export.folder import JSON_NAME, TENSORS_NAME, load_circuit, save_circuit
from graphprune.util.checks import usable
from graphprune.util.files import scratch_folder, write_text

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit


def push_to_hub(
    circuit: Circuit,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Uploads a circuit to the hub in one commit and returns the commit's address.

    The repository gets ``circuit.json``, ``tensors.safetensors``, a card (``README.md``) with
    figures and how to load the circuit and, where matplotlib is installed, ``circuit.png``.

    Args:
        circuit: what to upload.
        repo_id: ``"user/name"``; made if it does not exist.
        private: whether a repository that is made is private; ``None`` leaves that to the account.
        token: the account's token; ``None`` takes the one that was logged in with.
        revision: the branch; ``None`` takes the main one.
        message: the commit's message; ``None`` means one that names the circuit.

    Raises:
        InputError: for a repository's name that cannot be one.
        FetchError: where the hub cannot be reached or refuses; nothing is uploaded then.

    Example:
        >>> push_to_hub(circuit, "someone/ioi-circuit")  # doctest: +SKIP
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    text = f"Upload {circuit.title}" if message is None else message
    with scratch_folder(Path(tempfile.gettempdir())) as place:
        folder = save_circuit(circuit, place / "circuit")
        picture = _picture(circuit, folder / PICTURE_NAME)
        write_text(folder / CARD_NAME, card(circuit, repo_id, picture=picture))
        with _hub_errors(f"upload the circuit to {repo_id!r}"):
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=text, revision=revision
            )
    return str(done.commit_url)


def from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache: str | Path | None = None,
) -> Circuit:
    """Downloads a circuit that :func:`push_to_hub` uploaded; only its two files are fetched.

    Args:
        repo_id: ``"user/name"``.
        revision: a branch, a tag or a commit; ``None`` takes the main branch.
        token: for private repositories; ``None`` takes the one that was logged in with.
        cache: the folder that keeps downloads; ``None`` takes the hub's own.

    Raises:
        InputError: for a repository's name that cannot be one.
        FetchError: where the hub cannot be reached, or has no such repository, revision or circuit.
        FormatError: for files that are no circuit.

    Example:
        >>> from_hub("someone/ioi-circuit")  # doctest: +SKIP
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _hub_errors(f"fetch the circuit {repo_id!r}"):
        paths = [
            api.hf_hub_download(repo_id, name, revision=revision, cache_dir=cache)
            for name in (JSON_NAME, TENSORS_NAME)
        ]
    return load_circuit(Path(paths[0]).parent)


def load(place: str | os.PathLike[str], **options: Any) -> Circuit:
    """The circuit in a folder, or on the hub where there is no such folder.

    Args:
        place: a folder that :meth:`graphprune.Circuit.save` wrote, or a hub id, ``"user/name"``.
        **options: ``revision``, ``token`` and ``cache`` of :meth:`graphprune.Circuit.from_hub`.

    Raises :class:`InputError` where ``place`` is neither, and whatever reading it raises.

    Example:
        >>> circuit.save(folder / "found").name
        'found'
        >>> load(folder / "found")
        Circuit(12 of 24 edges, 10 nodes)
    """
    path = usable(place)
    if path.exists():
        if options:
            raise InputError(f"{sorted(options)} belong to the hub, but {path} is a local folder")
        return load_circuit(path)
    name = os.fspath(place)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            "expected a circuit's folder or a hub id such as 'user/name'; there is no folder "
            f"{name}"
        )
    return from_hub(name, **options)


def _picture(circuit: Circuit, path: Path) -> bool:
    from graphprune.drawing.figure import draw

    try:
        draw(circuit, path)
    except MissingExtraError:  # a card without a picture is still a card
        return False
    return True


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turns the hub's own exceptions into this library's."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except HFValidationError as error:
        raise InputError(f"cannot {what}: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise FetchError(f"cannot {what}: {' '.join(str(error).split())}") from error
