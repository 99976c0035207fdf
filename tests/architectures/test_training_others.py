"""Models that are not timm's are fine-tuned and distilled like timm's."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from lowrank_vit import compress, distill, finetune, load, save
from lowrank_vit.__main__ import main
from lowrank_vit.models import load_model
from tests.support.hugging_face import HUGGING_FACE
from tests.support.torch_kinds import TORCH

KINDS: dict[str, Any] = {
    **{name: HUGGING_FACE[name] for name in ("vit", "deit", "deit, distilled", "swin", "dinov2, swiglu")},
    **{name: TORCH[name] for name in ("torchvision's vit", "torchvision's swin")},
}
BEST: dict[str, Any] = {"recipe": "best", "reduction": 0.25, "device": "cpu"}


def logits(model: nn.Module, data: Tensor) -> Tensor:
    outputs = model(data)
    return outputs if isinstance(outputs, Tensor) else outputs.logits


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_in_place_and_learns(kind: str) -> None:
    model, data = KINDS[kind].make().float(), KINDS[kind].images(8).float()
    small, _ = compress(model, [data], **BEST)
    with torch.no_grad():
        target, before = logits(model, data), logits(small, data)
    labels = (logits(small, data).argmax(1) + 1) % 10
    tuned = copy.deepcopy(small)
    result = finetune(tuned, [(data, labels)], epochs=12, lr=1e-2, progress=False)
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        assert loss(logits(tuned, data), labels) < 0.7 * loss(before, labels)
    assert 0 < result.describe()["trainable_share"] < 0.6
    worse, _ = compress(model, [data], "svd", 0.4, device="cpu")
    with torch.no_grad():
        before = logits(worse, data)
    options: dict[str, Any] = {"epochs": 12, "lr": 3e-3, "batch_size": 4, "flips": False, "progress": False}
    distilled = distill(worse, model, data, **options)
    with torch.no_grad():
        after = logits(distilled.model, data)
    assert (after - target).norm() < 0.7 * (before - target).norm()


@pytest.mark.slow
def test_a_folder_of_transformers_goes_all_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, small = tmp_path / "dense", tmp_path / "small"
    model: Any = HUGGING_FACE["vit"].make().float()
    model.save_pretrained(source)
    few = ["--calibration-samples", "32", "--held-out-samples", "0", "--data", "digits", "--device", "cpu"]
    main(["compress", "--model", f"hf:{source}", *few, "--reduction", "0.2", "--out", str(small)])
    data = ["--data", "digits", "--device", "cpu", "--epochs", "1"]
    main(["finetune", str(small), *data, "--distill", "--out", str(tmp_path / "tuned")])
    main(["distill", str(small), *data, "--calibration-samples", "40", "--out", str(tmp_path / "distilled")])
    for folder in ("tuned", "distilled"):
        assert type(load(tmp_path / folder)) is type(load_model(f"hf:{source}"))
    again = tmp_path / "tuned again"
    save(load(tmp_path / "tuned"), again)
    assert load(again).config.to_dict() == load(tmp_path / "tuned").config.to_dict()
