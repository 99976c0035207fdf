"""From a model's name to a model with weights."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from torch import nn

import lowrank_vit.models.hugging_face as hugging_face
from lowrank_vit.models.arguments import fitting_arguments, make_model
from lowrank_vit.models.checkpoints import load_checkpoint
from lowrank_vit.models.standins import STANDINS, is_standin
from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.extras import hub_reachable
from lowrank_vit.runtime.registry import unknown

HUB = "hf_hub:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
NEAREST = 5  # timm knows over a thousand models: an error lists only this many


def load_model(
    name: str, checkpoint: Path | None = None, *, seed: int = 0, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """Load the timm model or stand-in ``name`` with weights: in eval mode, float32, on the CPU.

    ``name`` may be ``"hf_hub:OWNER/NAME"``, a timm model on the hub, or ``"hf:OWNER/NAME"`` or ``"hf:FOLDER"``, a model of
    Hugging Face's ``transformers``, whose weights come with it. Of others they come from ``checkpoint``, a file of
    safetensors or PyTorch (``FILE#ENTRY`` where it holds several models), which is loaded strictly; without one, a stand-in
    is the result of its training run ``seed`` (cached), and any other model is timm's pretrained one (from the hub).
    ``arguments``: of ``timm.create_model``, such as ``num_classes`` and ``img_size``, which a checkpoint's shapes say as
    well.
    Raises ``InputError`` for an unknown name, a checkpoint that does not fit, or weights that cannot be fetched.
    """
    given = dict(arguments or {})
    if name.startswith(hugging_face.PREFIX):
        if given or checkpoint is not None:
            raise InputError(f"{name!r} says how its model is made: leave out `checkpoint=` and arguments")
        model = hugging_face.load(name)
    elif name.startswith(HUB):
        model = _from_hub(name, checkpoint, given)
    else:
        check_name(name)
        if checkpoint is not None:
            model = make_model(name, fitting_arguments(name, Path(checkpoint), given))
            load_checkpoint(model, Path(checkpoint), name)
        elif is_standin(name):
            if given:
                raise InputError(
                    f"the stand-in {name!r} does not take {given}: leave it out, or pass `checkpoint=FILE`"
                )
            from lowrank_vit.models.standin_training import trained_standin  # with Lightning

            model = trained_standin(name, seed)
        else:
            model = _pretrained(name, given)
    return model.float().cpu().eval()


def model_arguments(name: str, checkpoint: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments, besides the classes, with which ``load_model`` makes a model, to save with its results."""
    if name.startswith(HUB):
        arguments = {**_hub_config(name).get("model_args", {}), **given}
    elif checkpoint is not None:
        arguments = fitting_arguments(name, Path(checkpoint), given)
    else:
        arguments = dict(given)
    return {key: value for key, value in arguments.items() if key != "num_classes"}


def pretrained_classes(config: Mapping[str, Any]) -> int | None:
    """Return how many classes timm's weights have, of the model that a ``config.json`` names; None of another origin."""
    tag = config["pretrained_cfg"].get("tag")
    known = timm.models.get_pretrained_cfg(".".join(filter(None, (config["architecture"], tag))))
    return None if known is None else known.num_classes


def check_name(name: str) -> None:
    """Raise ``InputError`` for a name, without an address, that timm does not know."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=NEAREST, cutoff=0.5)
        raise InputError(f"unknown model {name!r}: similar names: {', '.join(near or STANDINS)}")
    tags = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in tags:
        raise unknown("pretrained tag of a model", name, tags)


def _pretrained(name: str, given: Mapping[str, Any]) -> nn.Module:
    """Load timm's own weights, from the hub's local cache or the hub: safetensors only, never a pickle."""
    config = timm.models.get_pretrained_cfg(name)
    file = (config and config.hf_hub_filename) or WEIGHTS
    if config is None or not config.hf_hub_id or not file.endswith(".safetensors"):
        raise InputError(f"the hub has no safetensors weights of {name!r}: pass `checkpoint=FILE.safetensors`")
    classes = given.get("num_classes", config.num_classes)
    if classes not in (0, config.num_classes):  # 0: the features alone
        raise InputError(
            f"the pretrained weights of {name!r} have {config.num_classes} classes, not {classes}: pass the fine-tuned "
            "ones, `checkpoint=FILE.safetensors`"
        )
    model = make_model(name, given)
    load_checkpoint(model, _fetch(name, config.hf_hub_id, file), name)
    return model


def _from_hub(name: str, checkpoint: Path | None, given: Mapping[str, Any]) -> nn.Module:
    """Make the timm model that a repository's ``config.json`` describes, with its weights, or those of a file."""
    config = _hub_config(name)
    architecture = str(config.get("architecture"))
    check_name(architecture)
    arguments = {"num_classes": config.get("num_classes"), **config.get("model_args", {}), **given}
    known = {**config.get("pretrained_cfg", {}), "architecture": architecture, "num_classes": config.get("num_classes")}
    model = make_model(architecture, arguments, pretrained_cfg=known)
    weights = Path(checkpoint) if checkpoint else _fetch(name, name[len(HUB) :], WEIGHTS)
    load_checkpoint(model, weights, name)
    return model


def _hub_config(name: str) -> dict[str, Any]:
    path = _fetch(name, name[len(HUB) :], CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{CONFIG} of {name!r} cannot be read ({error}): pass a timm model's repository") from None
    if not isinstance(config, dict) or "architecture" not in config or "lowrank_vit" in config:
        raise InputError(
            f"{name!r} is not a dense timm model: pass a compressed model by its folder, in the place of DIR"
        )
    return config


def _fetch(name: str, repository: str, file: str) -> Path:
    """Return the path of the hub's file on this disk; download it if it is not cached."""
    repository, _, revision = repository.partition("@")
    cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
    if isinstance(cached, str):
        return Path(cached)
    remedy = "pass `checkpoint=FILE.safetensors`"
    if not hub_reachable():
        raise InputError(f"the pretrained weights of {name!r} are not cached, and the hub cannot be reached: {remedy}")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision or None))
    except Exception as error:  # the hub's, the HTTP client's and the file system's errors share no base class
        raise InputError(
            f"the pretrained weights of {name!r} cannot be fetched ({reason_of(error)}): {remedy}"
        ) from error
