"""Models of transformers by name: from a folder with safetensors, with what their preprocessor says of images."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from lowrank_vit import InputError
from lowrank_vit.models import load_model
from lowrank_vit.modules.predicting import predict
from tests.support.cases import few
from tests.support.hugging_face import HUGGING_FACE

IMAGES = {
    "size": {"height": 32, "width": 32},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [1.0, 1.0, 2.0],
    "resample": 3,
}


def saved(kind: str, folder: Path, **changes: object) -> nn.Module:
    """Write a model as transformers does, with changes in its ``config.json``, and return it."""
    model = HUGGING_FACE[kind].make().float()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    return model


@pytest.mark.parametrize("kind", few(["vit", "swin", "dinov2, swiglu", "clip", "siglip"]))
def test_a_folder_is_loaded(kind: str, tmp_path: Path) -> None:
    model, data = saved(kind, tmp_path), HUGGING_FACE[kind].images(2)
    loaded = load_model(f"hf:{tmp_path}")
    with torch.no_grad():
        assert torch.equal(predict(loaded, data), predict(model, data))
    told = loaded.pretrained_cfg
    assert told["mean"] == IMAGES["image_mean"]
    assert told["interpolation"] == "bicubic"
    assert told["input_size"] == [3, *data.shape[2:]]


BAD: list[tuple[dict[str, object], str]] = [
    ({"architectures": ["BertModel"]}, "unknown class of transformers 'BertModel'"),
    ({"architectures": None}, "unknown class of transformers 'of no class'"),
    ({"architectures": ["DeiTForImageClassification"]}, "has no weights for"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
    ({"hidden_size": 64}, "cannot be loaded"),
]


def test_what_is_no_such_model_is_one_line(tmp_path: Path) -> None:
    for place, (changes, said) in enumerate(BAD):
        saved("vit", tmp_path / str(place), **changes)
        with pytest.raises(InputError, match=said) as refused:
            load_model(f"hf:{tmp_path / str(place)}")
        assert "\n" not in str(refused.value)
