"""Models of Hugging Face's ``transformers``: made from a configuration, loaded from a folder or the hub, and recorded.

A configuration comes from elsewhere and is not trusted: the class is one of a list, no code of a repository is run, no
kernel is fetched, and weights are read from safetensors only.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lowrank_vit.architectures.origin import PACKAGE
from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.extras import hub_reachable, require
from lowrank_vit.runtime.registry import unknown

PREFIX = "hf:"
FACTORY = f"{__name__}:make"  # the record of a saved model names it
CONFIG, IMAGES = "config.json", "preprocessor_config.json"
PLAIN = ("ViT", "DeiT", "Dinov2", "Dinov2WithRegisters", "Swin")
MODELS = (
    *(f"{name}{form}" for name in PLAIN for form in ("Model", "ForImageClassification")),
    *("DeiTForImageClassificationWithTeacher", "SiglipVisionModel", "SiglipForImageClassification"),
    *("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPForImageClassification"),
)
TOWERS = {"SiglipModel": "SiglipVisionModel", "CLIPModel": "CLIPVisionModelWithProjection"}  # of images and texts
# what a configuration may say of code and kernels to load, of how weights are stored, and of what is returned
IGNORED = frozenset(
    {
        *("attn_implementation", "_attn_implementation", "auto_map", "quantization_config", "_name_or_path"),
        *("architectures", "transformers_version", "model_type", "dtype", "torch_dtype"),
        *("return_dict", "output_attentions", "output_hidden_states"),
    }
)
POOLING = "add_pooling_layer"  # the only argument beside the configuration
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def make(kind: str, config: Mapping[str, Any], **options: bool) -> nn.Module:
    """Make the model of a class of transformers, without weights.

    Raises ``InputError`` for a class that is not listed, or with an option that is none.
    """
    if options.keys() - {POOLING}:
        raise unknown("argument", next(iter(options.keys() - {POOLING})), [POOLING])
    whole = _class(kind)
    known = whole.config_class(**_known(config, whole.config_class().to_dict()))
    return whole._from_config(known, attn_implementation="sdpa", **options)


def recorded(model: nn.Module) -> dict[str, Any] | None:
    """Return the arguments from which ``make`` rebuilds a model; None for a model of another origin."""
    kind = type(model)
    if kind.__name__ not in MODELS or not kind.__module__.startswith(PACKAGE):
        return None
    holder: Any = model
    config = json.loads(holder.config.to_json_string(use_diff=False))
    options = {POOLING: False} if getattr(model, "pooler", model) is None else {}
    return {"kind": kind.__name__, "config": _known(config, config), **options}


def load(name: str) -> nn.Module:
    """Load ``"hf:OWNER/NAME"`` or ``"hf:FOLDER"``; the model carries how its images are prepared, as timm has it.

    Of a model of images and texts, that is the part that sees images. Raises ``InputError`` for what is no such model.
    """
    place = name.removeprefix(PREFIX)
    require(name, "transformers")
    config = _described(place, CONFIG)
    if "quantization_config" in config:
        raise InputError(f"{name} is quantised: pass the model that it was made from")
    named = next(iter(config.get("architectures") or ["of no class"]))
    whole = _class(TOWERS.get(named, named))
    model, missing = _loaded(whole, place)
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None
    elif missing:
        raise InputError(f"{name} has no weights for {missing[0]} ({len(missing)} in all): pass a whole {named}")
    model.pretrained_cfg = {"source": name, **prepared_images(config, _described(place, IMAGES, {}))}
    return model


def prepared_images(config: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, Any]:
    """Describe, as timm does, how images are prepared; ``config``: the model's, ``images``: its preprocessor's.

    >>> prepared_images({"image_size": 224}, {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}})
    {'input_size': [3, 224, 224], 'interpolation': 'bilinear', 'crop_pct': 0.875, 'crop_mode': 'center'}
    """
    config = config.get("vision_config", config)
    side, size = config.get("image_size", 224), images.get("size")
    height, width = (side, side) if isinstance(side, int) else side
    # 0: both sides are resized, nothing is cut off
    edge = size.get("shortest_edge", 0) if isinstance(size, dict) else 0
    described = {
        "input_size": [config.get("num_channels", 3), height, width],
        "interpolation": RESAMPLING.get(images.get("resample", 2), "bilinear"),
        "crop_pct": min(1.0, height / edge) if edge else 1.0,
        "crop_mode": "center" if edge else "squash",
    }
    return {**described, **{key: images[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in images}}


def _class(kind: str) -> Any:
    require(f"a {kind}", "transformers")
    import transformers

    if kind not in MODELS:
        raise unknown("class of transformers", kind, MODELS)
    return getattr(transformers, kind)


def _known(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that a configuration of this class has, without those that are ignored."""
    return {
        key: _known(value, defaults[key]) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in config.items()
        if key in defaults and key not in IGNORED
    }


def _described(place: str, file: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a file of JSON in a folder or a repository of the hub; ``default``: where there is none."""
    from transformers.utils import cached_file

    try:
        path = cached_file(
            place, file, local_files_only=not hub_reachable(), _raise_exceptions_for_missing_entries=default is None
        )
        value = default if path is None else json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        if default is not None:
            return default
        raise InputError(
            f"{PREFIX}{place} has no {file} that can be read ({reason_of(error)}): name a folder or OWNER/NAME"
        ) from None
    if not isinstance(value, dict) or "lowrank_vit" in value:
        raise InputError(
            f"{PREFIX}{place} is not a dense model of transformers: pass a compressed model by its folder, "
            "in the place of DIR"
        )
    return value


def _loaded(whole: Any, place: str) -> tuple[Any, list[str]]:
    """Load weights strictly, from safetensors; return the model, and the names of the weights that are missing."""
    from transformers.utils import logging

    shown, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, told = whole.from_pretrained(
            place,
            use_safetensors=True,
            attn_implementation="sdpa",
            local_files_only=not hub_reachable(),
            output_loading_info=True,
        )
    except Exception as error:  # of the hub, of the files, of safetensors, and of a configuration's values
        raise InputError(
            f"{PREFIX}{place} cannot be loaded ({reason_of(error)}): name a model with safetensors weights"
        ) from None
    finally:
        logging.set_verbosity(shown)
        if bars:
            logging.enable_progress_bar()
    return model.float().eval(), sorted(told["missing_keys"])
