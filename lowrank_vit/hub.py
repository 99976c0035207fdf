"""The Hugging Face hub: whether it can be reached, folders from it and to it."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from lowrank_vit.errors import InputError
from lowrank_vit.seal import CARD, CONFIG, NESTED, REPORT, WEIGHTS

TIMEOUT = 5.0  # seconds
FILES = [CONFIG, WEIGHTS, REPORT, CARD]
PREFIXES = ("hf_hub:", "hf-hub:")  # as in timm's model names


def hub_reachable() -> bool:
    """Whether the hub's host accepts a connection within five seconds: its client would retry for a minute.

    ``HF_HUB_OFFLINE`` means no. Behind a proxy a direct connection says nothing, so the answer is yes and the client
    finds out by itself.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "huggingface.co", port), timeout=TIMEOUT):
            return True
    except OSError:
        return False


def is_hub_name(name: str | Path) -> bool:
    """Whether it is ``hf_hub:OWNER/NAME``, not a folder."""
    return str(name).startswith(PREFIXES)


def local_folder(name: str | Path, *, nested: bool = False) -> Path:
    """The folder on this disk: ``name`` itself, or where the files of ``hf_hub:OWNER/NAME[@REVISION]`` are cached.

    What is not cached, or is out of date, is fetched; without a network the cache has to do. ``nested``: fetch what other
    sizes are cut from, too. Raises ``InputError`` where it cannot be fetched.
    """
    if not is_hub_name(name):
        return Path(name)
    import huggingface_hub

    repository, _, revision = str(name)[len(PREFIXES[0]) :].partition("@")
    files, offline = [*FILES, NESTED] if nested else FILES, not hub_reachable()
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=files, local_files_only=offline
        )
    except Exception as error:  # the hub's, the HTTP client's and the file system's errors share no base class
        reason = "it is not cached, and the hub cannot be reached" if offline else _reason(error)
        raise InputError(f"{name} cannot be fetched: {reason}") from error
    return Path(found)


def upload(folder: Path, repository: str, private: bool, message: str) -> str:
    """Put the files of a model's ``folder`` into a repository, made where there is none; its address.

    Raises ``InputError`` where the hub refuses or cannot be reached.
    """
    import huggingface_hub

    if not hub_reachable():
        raise InputError(f"{folder} cannot be pushed: the hub cannot be reached; try again with a network")
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, allow_patterns=[*FILES, NESTED]
        )
    except Exception as error:  # as above
        raise InputError(f"{folder} cannot be pushed to {repository!r}: {_reason(error)}") from error
    return str(address)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
