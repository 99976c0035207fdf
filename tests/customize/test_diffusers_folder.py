"""Folders of diffusers, with an autoencoder or of pixels."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lowrank_vit.cli import main
from lowrank_vit.customize.customization import load_delta
from lowrank_vit.customize.diffusers_folder import open_folder
from lowrank_vit.customize.sample import sample
from lowrank_vit.runtime.errors import InputError
from tests.support.diffusion import METHODS

pytestmark = pytest.mark.slow

VOCABULARY = [*"aphotfdg", *(f"{part}</w>" for part in ("a", "o", "f", "g", "photo", "of", "dog"))]
MERGES = ["p h", "ph o", "pho t", "phot o</w>", "o f</w>", "d o", "do g</w>"]


@pytest.fixture(scope="module", params=["latent", "pixels"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny diffusion model of random weights: U-Net, CLIP's text model, a tokenizer and, if latent, an autoencoder."""
    pytest.importorskip("transformers")
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder, latent = tmp_path_factory.mktemp("models") / request.param, request.param == "latent"
    torch.manual_seed(0)
    channels = 4 if latent else 1
    blocks = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=channels, down_block_types=down, up_block_types=up,
        cross_attention_dim=12, attention_head_dim=2, **blocks,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    if latent:
        encoders = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        AutoencoderKL(latent_channels=4, **encoders, **blocks).save_pretrained(folder / "vae")
    PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True).save_pretrained(folder / "scheduler")
    words = [*VOCABULARY, "ph", "pho", "phot", "do", "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 10})
    )
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=10, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, of several sizes and modes."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, (mode, size) in enumerate((("RGB", (40, 30)), ("L", (16, 16)), ("RGBA", (20, 50)))):
        color = 60 * (index + 1)
        Image.new(mode, size, color if mode == "L" else (color,) * len(mode)).save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_customize_on_a_folder(
    folder: Path, method: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, prompt = tmp_path / "delta.safetensors", "a photo of V* dog"
    given = {"model": folder, "images": photographs, "prompt": prompt, "method": method, "steps": 2, "out": out}
    main(["customize", *(f"--{name}={value}" for name, value in given.items()), "--device=cpu"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{method} on 3 images: ")
    assert printed.endswith(f"saved to {out}\n")
    model = open_folder(folder)
    load_delta(model, out)
    drawn = sample(model, [prompt], "V*", steps=2)
    assert drawn.shape == (1, model.channels, model.side, model.side)
    assert drawn.isfinite().all()


def test_a_folder_without_a_text_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "text_encoder")
    with pytest.raises(InputError, match="has no text_encoder"):
        open_folder(tmp_path / "copy")
