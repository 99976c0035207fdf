"""Models that people wrote: taken for what they compute, never for what they look like; modules that hold known ones."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, compress, load, quantize, save
from lowrank_vit.architectures.base import UnknownWholeError, family_of
from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.architectures.encoder_parts import EncoderBlock
from lowrank_vit.architectures.imitated import BranchStep
from lowrank_vit.modules.counting import parameter_count
from tests.support.cases import few, in_turn
from tests.support.hand_written import PARTLY, WHOLE, Listed
from tests.support.kinds import KINDS
from tests.support.models import distance, stirred
from tests.support.refits import check_walk
from tests.support.torch_kinds import CLIPS, TORCH, Headed

X = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def made(kind: str) -> nn.Module:
    """A model in which every part matters."""
    torch.manual_seed(0)
    return stirred({**WHOLE, **PARTLY}[kind]().eval(), 0.05)


@pytest.mark.parametrize("kind", [*WHOLE, *PARTLY])
def test_what_is_exchanged_computes_the_same(kind: str) -> None:
    model = made(kind)
    exchanged = canonical(copy.deepcopy(model))
    assert distance(exchanged, model, X) < 1e-5
    assert parameter_count(exchanged) == parameter_count(model)


@pytest.mark.parametrize("kind", few(WHOLE))
class TestWhole:
    @torch.no_grad()
    def test_steps_are_the_whole_way(self, kind: str) -> None:
        model, data = canonical(made(kind).double()), X.double()
        assert all(isinstance(step, EncoderBlock | BranchStep) for step in family_of(model).steps(model).values())
        check_walk(model, data, model(data))

    def test_best_takes_it_whole(self, kind: str, tmp_path: Path) -> None:
        model = made(kind)
        small, report = compress(model, [X], "best", 0.25, device="cpu")
        details = [layer["details"] for layer in report["layers"]]
        assert "fallback" not in report
        assert report["refit"]
        assert any("hidden" in each for each in details)
        assert any("query_key" in each and "value" in each for each in details)
        assert distance(small, model, X) < 0.4
        save(small, tmp_path / "it")
        assert distance(load(tmp_path / "it", model=model), small, X) == 0
        assert distance(quantize(model, 8, [X], quantizer="gptq")[0], model, X) < 0.05


@pytest.mark.parametrize("kind", PARTLY)
def test_what_is_known_of_the_rest_shrinks(kind: str) -> None:
    model = made(kind)
    small, report = compress(model, [X], "best", 0.2, device="cpu")
    assert "refit" in report["fallback"]["left_out"]
    assert any("hidden" in layer["details"] for layer in report["layers"])
    assert parameter_count(small) < 0.85 * parameter_count(model)
    assert distance(small, model, X) < 0.6
    with pytest.raises(UnknownWholeError, match="cannot be refitted"):
        family_of(canonical(model)).steps(model)


@pytest.mark.parametrize("asked", [False, True])
def test_a_block_that_is_asked_for_more(asked: bool) -> None:
    class Asked(Listed):
        def forward(self, x: Tensor) -> Tensor:
            *first, last = self.layers
            for layer in first:
                x = layer(x, return_attention=False)
            return last(x, return_attention=asked)

    model = made("torch's attention")
    model.body.__class__ = Asked
    if asked:
        with pytest.raises(InputError, match=r"more than the stream \(return_attention\), which"):
            compress(model, [X], "loss_aware", 0.2, device="cpu")
    else:
        _, report = compress(model, [X], "best", 0.2, device="cpu")
        assert report["refit"]


class Nested(nn.Module):
    """A backbone two modules deep, and an output that is multiplied."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Sequential(backbone)

    def forward(self, images: Tensor) -> Tensor:
        return 2 * self.trunk(images)


KNOWN = {kind: KINDS[kind] for kind in ("vit", "swin", "eva02")} | {"torchvision": TORCH["torchvision's vit"]}


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
            assert "only what sees images (visual) is quantised" in caplog.text


def test_a_clip_of_transformers_is_refused_in_one_line() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8})
    )
    with pytest.raises(InputError, match=r"takes texts first \(input_ids\): .* model\.vision_model"):
        compress(model, [torch.zeros(2, 3, 32, 32)], "best", 0.1)
