"""A module of the user's that holds one known model; and models that are no models of images."""

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import compress
from tests.support.cases import in_turn
from tests.support.kinds import KINDS
from tests.support.torch_kinds import TORCH, Headed


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
