"""Find the weights of a row's model, or say why they cannot be had."""

import functools
import hashlib
from pathlib import Path

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.extras import hub_reachable

REACHABLE = functools.cache(hub_reachable)


def check_folder(folder: Path) -> None:
    """Raise ``InputError`` where the folder of checkpoints is none."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: --checkpoints takes a folder of .safetensors files")


def find_checkpoint(folder: Path, model: str) -> Path | str:
    """Find the model's weights in ``folder``, by its name with the tag, then without; say why where there are none.

    Raises ``InputError`` where that is no folder.
    """
    check_folder(folder)
    names = list(dict.fromkeys((f"{model}.safetensors", f"{model.partition('.')[0]}.safetensors")))
    paths = [folder / name for name in names if (folder / name).is_file()]
    return paths[0] if paths else f"no checkpoint: {folder} has no {' or '.join(names)}"


@functools.cache
def file_hash(path: Path) -> str:
    """Return the first 12 hexadecimal digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


@functools.cache
def hub_reason(model: str) -> str | None:
    """Say why the pretrained weights cannot be had: neither cached, nor is the hub in reach. None where they can."""
    import huggingface_hub
    import timm

    config = timm.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        return f"the hub has no weights of {model}: give --checkpoints DIR"
    cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id.partition("@")[0], "model.safetensors")
    if isinstance(cached, str) or REACHABLE():
        return None
    return f"the weights of {model} are not cached and the hub cannot be reached: give --checkpoints DIR"
