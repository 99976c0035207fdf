"""A module of the user's that holds one known model; and models that are no models of images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, compress, load, quantize, save
from tests.support.cases import in_turn
from tests.support.kinds import KINDS
from tests.support.torch_kinds import CLIPS, TORCH, Headed


class Nested(nn.Module):
    """A backbone two modules deep, and an output that is multiplied."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Sequential(backbone)

    def forward(self, images: Tensor) -> Tensor:
        return 2 * self.trunk(images)


KNOWN = {
    "vit": KINDS["vit"],
    "swin": KINDS["swin"],
    "beit": KINDS["beit"],
    "eva02": KINDS["eva02"],
    "torchvision": TORCH["torchvision's vit"],
}


@torch.no_grad()
def distance(small: nn.Module, dense: nn.Module, data: Tensor) -> float:
    return float((small(data) - dense(data)).norm() / dense(data).norm())


@pytest.mark.parametrize(("kind", "hold"), in_turn(KNOWN, [Headed, Nested]))
def test_a_backbone_is_compressed_as_one(kind: str, hold: type, caplog: pytest.LogCaptureFixture) -> None:
    model, data = hold(KNOWN[kind].make()).double().eval(), KNOWN[kind].images(8)
    small, report = compress(model, [data], "best", 0.2, device="cpu")
    assert type(small) is hold
    assert "fallback" not in report
    assert report["refit"]
    assert any("hidden" in layer["details"] for layer in report["layers"])
    assert distance(small, model, data) < 0.6
    assert " inside the " in caplog.text or kind == "torchvision"  # whose blocks are known wherever they stand


@pytest.mark.parametrize("kind", CLIPS)
def test_the_tower_for_images_is_found_in_a_clip(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model: Any = CLIPS[kind].make().float()
    data, texts = CLIPS[kind].images(8).float(), torch.arange(40).view(4, 10)
    small: Any
    small, report = compress(model, [data], "best", 0.1, device="cpu")
    assert " inside the CLIP (visual) is compressed as a backbone, and put back" in caplog.text
    assert "objective 'features', as the model embeds images (CLIP)" in caplog.text
    assert type(small) is type(model)
    assert report["refit"]
    assert all(layer["name"].startswith("visual.") for layer in report["layers"])
    with torch.no_grad():
        torch.testing.assert_close(small.encode_text(texts), model.encode_text(texts))
        images = model.encode_image(data)
        assert 0 < float((small.encode_image(data) - images).norm() / images.norm()) < 0.2
        save(small, tmp_path / "small", report)
        again: Any = load(tmp_path / "small", model=model)
        torch.testing.assert_close(again.encode_image(data), small.encode_image(data))
        torch.testing.assert_close(again.encode_text(texts), small.encode_text(texts))
        for quantizer in ("nearest", "gptq"):
            rounded: Any = quantize(model, 8, [data], quantizer=quantizer)[0]
            assert 0 < float((rounded.encode_image(data) - images).norm() / images.norm()) < 0.05


def test_a_clip_of_transformers_is_refused_in_one_line() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8})
    )
    with pytest.raises(InputError, match=r"takes texts first \(input_ids\): .* model\.vision_model"):
        compress(model, [torch.zeros(2, 3, 32, 32)], "best", 0.1)
