"""A text-to-image model in a folder as diffusers lays it out: unet, scheduler, and where there are any vae, text_encoder.

A model without a text encoder has a table of words instead: ``words.safetensors`` with the vectors, whose description holds
the vocabulary. Weights are read from safetensors files only, so that nothing in them is executed.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lowrank_vit.customize.text_to_image import ClipText, Text, TextToImage, WordTable
from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.extras import require
from lowrank_vit.runtime.files import json_text, replacing
from lowrank_vit.runtime.tensors import tensor_bytes

UNET, SCHEDULER, AUTOENCODER, ENCODER, TOKENIZER = "unet", "scheduler", "vae", "text_encoder", "tokenizer"
WORDS = "words.safetensors"
INDEX = "model_index.json"


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


def save_folder(model: TextToImage, folder: Path) -> None:
    """Write a model with a table of words as a folder that ``open_folder`` reads; its place must be free."""
    from diffusers import DDPMScheduler

    if not isinstance(model.text, WordTable) or model.autoencoder is not None:
        raise InputError("only models of pixels with a table of words are written as a folder")
    if folder.exists():
        raise InputError(f"{folder} exists already: choose another place")
    about = {"vocabulary": json.dumps(model.text.vocabulary), "length": str(model.text.length)}
    with replacing(folder, folder=True) as temporary:
        (temporary / INDEX).write_text(json_text({UNET: ["diffusers", "UNet2DConditionModel"]}))
        model.unet.save_pretrained(temporary / UNET)
        DDPMScheduler.from_config(dict(model.schedule)).save_pretrained(temporary / SCHEDULER)
        (temporary / WORDS).write_bytes(tensor_bytes(model.text.encoder.state_dict(), about))


def _text(folder: Path) -> Text:
    if (folder / WORDS).is_file():
        return _word_table(folder / WORDS)
    if not (folder / ENCODER).is_dir():
        raise InputError(f"{folder} has neither {ENCODER} nor {WORDS}: without either a prompt means nothing")
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


def _word_table(path: Path) -> WordTable:
    try:
        with safe_open(path, "pt") as file:
            about, weight = file.metadata() or {}, file.get_tensor("0.weight")
        table = WordTable(json.loads(about["vocabulary"]), weight.shape[1], int(about["length"]))
        table.encoder.load_state_dict({"0.weight": weight})
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise _broken(path, error) from None
    return table


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
