"""Folders of diffusers: the small model's, one with a text encoder and an autoencoder, and those that are refused."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lowrank_vit.cli import main
from lowrank_vit.customize.customization import load_delta
from lowrank_vit.customize.diffusers_folder import open_folder, save_folder
from lowrank_vit.customize.sample import sample
from lowrank_vit.runtime.errors import InputError
from tests.support.diffusion import METHODS, outputs, small

pytestmark = pytest.mark.slow

VOCABULARY = [*"aphotfdg", *(f"{part}</w>" for part in ("a", "o", "f", "g", "photo", "of", "dog"))]
MERGES = ["p h", "ph o", "pho t", "phot o</w>", "o f</w>", "d o", "do g</w>"]


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with random weights."""
    folder = tmp_path_factory.mktemp("models") / "digits"
    save_folder(small(torch.float32), folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny latent diffusion model of random weights: U-Net, autoencoder, CLIP's text model and a tokenizer."""
    pytest.importorskip("transformers")
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("models") / "latent"
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=8, down_block_types=down, up_block_types=up, cross_attention_dim=12, attention_head_dim=2, **blocks
    )
    unet.save_pretrained(folder / "unet")
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


def test_the_small_model_comes_back(digits_folder: Path) -> None:
    model = open_folder(digits_folder)
    expected = small(torch.float32)
    assert torch.allclose(outputs(model, ["normal 3"]), outputs(expected, ["normal 3"]), atol=1e-6)
    assert model.hash() == expected.hash()
    assert (model.side, model.channels) == (8, 1)
    with pytest.raises(InputError, match="exists already"):
        save_folder(expected, digits_folder)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["clip_folder", "digits_folder"])
def test_customize_on_a_folder(
    kind: str,
    method: str,
    photographs: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = request.getfixturevalue(kind)
    prompt = "normal V* digit" if kind == "digits_folder" else "a photo of V* dog"
    out = tmp_path / "delta.safetensors"
    given = ["--model", str(folder), "--images", str(photographs), "--prompt", prompt, "--method", method]
    main(["customize", *given, "--steps", "2", "--out", str(out), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{method} on 3 images: ")
    assert printed.endswith(f"saved to {out}\n")
    model = open_folder(folder)
    load_delta(model, out)
    drawn = sample(model, [prompt], "V*", steps=2)
    assert drawn.shape == (1, model.channels, model.side, model.side)
    assert drawn.isfinite().all()
