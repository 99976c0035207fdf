"""A model with a delta in it: attached, saved, loaded, merged, detached."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lowrank_vit.customize.deltas import DELTAS, Delta
from lowrank_vit.customize.text_to_image import NewWord, TextToImage
from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.tensors import write_tensors

FORMAT = "lowrank_vit delta 1"
WORD = "word"  # the tensor of the new word's vector
UNTRAINED = ("learning_rate",)  # settings that bear on training alone


@dataclass(frozen=True)
class Customization:
    """Hold what was attached to ``model``: the method, the new word or None, the hash of the base, the tensors by name.

    ``merge`` makes plain layers of it, so that inference costs nothing more, or as little as possible; ``detach`` gives the
    base back, bit by bit.
    """

    model: TextToImage
    method: Delta
    new_word: str | None
    base: str
    tensors: dict[str, nn.Parameter]
    merge: Callable[[], None]
    detach: Callable[[], None]

    @property
    def trained(self) -> list[nn.Parameter]:
        """List the trained tensors: all, except a word's vector that stays as it was drawn."""
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]

    def prompt(self, prompts: list[str]) -> Tensor:
        """Return what the U-Net attends to, (N, L, m); the prompts may contain the new word."""
        return self.model.prompt(prompts, self.new_word)


def customized(model: TextToImage, method: Delta, new_word: str | None = None, *, seed: int = 0) -> Customization:
    """Attach a method to a frozen model, in place; ``seed`` draws the initial values, the same on every device.

    Raises ``InputError`` where a method trains the vector of a new word and there is none.
    """
    if method.trains_word and new_word is None:
        raise InputError(
            f"{DELTAS.name_of(method)} trains the vector of a new word: name it, as in 'a photo of V* dog'"
        )
    base, generator = model.hash(), torch.Generator().manual_seed(seed)
    # drawn first: the same for all methods
    word = None if new_word is None else NewWord(model.text.embedding, generator)
    attached = method.attach(model.unet, generator)
    tensors = dict(attached.tensors)
    if word is not None:
        word.vector.requires_grad_(method.trains_word)
        tensors[WORD] = word.vector
        model.text.use(word)

    def detach() -> None:
        attached.detach()
        if word is not None:
            model.text.use(word.table)

    return Customization(model, method, new_word, base, tensors, attached.merge, detach)


def save_delta(customization: Customization, path: Path) -> None:
    """Write the tensors, and what they belong to, as one safetensors file."""
    method = customization.method
    settings = {name: value for name, value in vars(method).items() if name not in UNTRAINED}
    about = {
        "format": FORMAT,
        "method": str(DELTAS.name_of(method)),
        "settings": json.dumps(settings),
        "word": customization.new_word or "",
        "base": customization.base,
    }
    write_tensors(path, customization.tensors, about)


def load_delta(model: TextToImage, path: Path) -> Customization:
    """Attach the delta in a file to its base model, on the model's device.

    Raises ``InputError`` for a file that is no delta, and for one that was made for other weights.
    """
    about, tensors = _read(path)
    if about["base"] != model.hash():
        raise InputError(
            f"{path} was made for another base model: its weights have another hash; pass the model that it was made with"
        )
    try:
        method = DELTAS.get(about["method"])(**json.loads(about["settings"]))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): make it again") from None
    customization = customized(model, method, about["word"] or None)
    expected = {name: tensor.shape for name, tensor in customization.tensors.items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        customization.detach()
        raise InputError(f"{path} is damaged (its tensors are not those of {about['method']}): make it again")
    with torch.no_grad():
        for name, tensor in customization.tensors.items():
            tensor.copy_(tensors[name])
            tensor.requires_grad_(False)
    return customization


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a dictionary
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path} ({reason_of(error)}): pass a delta that customize wrote") from None
    missing = {"method", "settings", "word", "base"} - about.keys()
    if about.get("format") != FORMAT or missing:
        raise InputError(f"{path} is not a delta of this format: pass one that customize wrote")
    return about, tensors
