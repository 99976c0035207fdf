"""A text-to-image model in a folder as diffusers lays it out: unet, scheduler, text_encoder, tokenizer and, if any, vae.

Weights are read from safetensors files only, so that nothing in them is executed.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lowrank_vit.customize.text_to_image import ClipText, TextToImage
from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.extras import require

UNET, SCHEDULER, AUTOENCODER, ENCODER, TOKENIZER = "unet", "scheduler", "vae", "text_encoder", "tokenizer"


def open_folder(folder: Path) -> TextToImage:
    """Load a model from a folder, in float32 on the CPU. Raises ``InputError`` for missing or unsupported parts."""
    require("a diffusion model", "diffusers")
    unet = folder / UNET / "config.json"
    if not unet.is_file():
        raise InputError(f"{unet} is missing: {folder} is not the folder of a diffusion model of diffusers")
    kind = _json(unet).get("_class_name")
    if kind != "UNet2DConditionModel":
        raise InputError(f"{unet} is of a {kind}: only models with a UNet2DConditionModel are customised")
    from diffusers import AutoencoderKL, UNet2DConditionModel

    plainly = {"low_cpu_mem_usage": False}  # otherwise it asks for another package
    autoencoder = _weights(AutoencoderKL, folder / AUTOENCODER, **plainly) if (folder / AUTOENCODER).is_dir() else None
    network = _weights(UNet2DConditionModel, folder / UNET, **plainly)
    schedule = _json(folder / SCHEDULER / "scheduler_config.json")
    return TextToImage(network, _text(folder), schedule, autoencoder)


def _text(folder: Path) -> ClipText:
    if not (folder / ENCODER).is_dir():
        raise InputError(f"{folder} has no {ENCODER}: without one a prompt means nothing")
    require("a model with a text encoder", "transformers")
    from transformers import CLIPTextModel, CLIPTokenizer

    kinds = _json(folder / ENCODER / "config.json").get("architectures") or ["CLIPTextModel"]
    if "CLIPTextModel" not in kinds or (folder / f"{ENCODER}_2").exists():
        raise InputError(
            f"{folder / ENCODER} is of {', '.join(kinds)}: only models with one CLIPTextModel are customised"
        )
    encoder = _weights(CLIPTextModel, folder / ENCODER)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise _broken(folder / TOKENIZER, error) from None
    return ClipText(tokenizer, encoder)


def _weights(kind: Any, folder: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options).float()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _broken(folder, error) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, error) from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no configuration: fetch the model again")
    return value


def _broken(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot load {path} ({reason_of(error)}): fetch the model again, with safetensors files")
