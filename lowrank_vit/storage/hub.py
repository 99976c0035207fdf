"""The Hugging Face hub: folders from it and to it."""

from pathlib import Path

from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.extras import hub_reachable
from lowrank_vit.runtime.files import given_path
from lowrank_vit.storage.contents import CARD, CONFIG, NESTED, REPORT, WEIGHTS
from lowrank_vit.storage.shipped import shipped_folder

FILES = [CONFIG, WEIGHTS, REPORT, CARD]
PREFIXES = ("hf_hub:", "hf-hub:")  # as in timm's model names


def is_hub_name(name: str | Path) -> bool:
    """Tell whether a name is ``hf_hub:OWNER/NAME``, not a folder."""
    return str(name).startswith(PREFIXES)


def local_folder(name: str | Path, *, nested: bool = False) -> Path:
    """Return the folder on this disk: ``name`` itself, or where the files of ``hf_hub:OWNER/NAME[@REVISION]`` are cached.

    It may also be the name of a model that comes with the package.

    What is not cached, or is out of date, is fetched; without a network only the cache is used. ``nested``: fetch what other
    sizes are cut from, too. Raises ``InputError`` if it cannot be fetched.
    """
    if not is_hub_name(name):
        return shipped_folder(name) or given_path(str(name))
    import huggingface_hub

    repository, _, revision = str(name)[len(PREFIXES[0]) :].partition("@")
    files, offline = [*FILES, NESTED] if nested else FILES, not hub_reachable()
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=files, local_files_only=offline
        )
    except Exception as error:  # the hub's, the HTTP client's and the file system's errors share no base class
        reason = "it is not cached, and the hub cannot be reached" if offline else reason_of(error)
        raise InputError(f"{name} cannot be fetched: {reason}") from error
    return Path(folder)


def upload(folder: Path, repository: str, private: bool, message: str) -> str:
    """Upload the files of a model's ``folder`` to a repository, created if there is none, and return its address.

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
        raise InputError(f"{folder} cannot be pushed to {repository!r}: {reason_of(error)}") from error
    return str(address)
