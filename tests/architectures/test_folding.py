"""Norms and LayerScale folded into linear layers: the same function of every kind of model, with fewer parameters."""

import copy

import pytest
import torch
from torch import nn

from lowrank_vit.architectures.folding import fold_norms
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.skipped import PlainNorm, Unscaled
from tests.support.cases import few
from tests.support.kinds import KINDS
from tests.support.models import outputs, stirred

# parameters of scales and shifts, and of LayerScale, that linear layers take up: 2 n for each norm, n for each LayerScale
SAVED = {
    "no qkv bias": 2 * 32,  # the first norm's shift finds no bias
    "layer scale": 6 * 32,
    "swin": 4 * 16 + 2 * 4 * 32,
    "mixer": 2 * 2 * 24,  # the channels' MLPs; those of tokens see the stream across its norm
    "post norm": 0,
    "parallel things": 12 * 32,
    "vit": 4 * 32,
    "distilled deit": 4 * 32,
    "q and k norm": 4 * 32,
    "swin v2": 0,
    "convnext": 2 * (8 + 16 + 24 + 32),
    "volo": 0,
}


@pytest.mark.parametrize("kind", few([*SAVED, *(kind for kind in KINDS if kind not in SAVED)], 6))
def test_the_outputs_are_the_same(kind: str) -> None:
    model, data = stirred(KINDS[kind].make()), KINDS[kind].images(2)
    folded = copy.deepcopy(model)
    fold_norms(folded)
    torch.testing.assert_close(outputs(folded, data), outputs(model, data), rtol=1e-8, atol=1e-8)
    saved = parameter_count(model) - parameter_count(folded)
    assert saved == SAVED.get(kind, saved)


def test_layer_scale_by_hand() -> None:
    model = KINDS["layer scale"].make()
    block = model.get_submodule("blocks.0")
    scale, proj = block.get_submodule("ls1"), block.get_submodule("attn.proj")
    assert isinstance(proj, nn.Linear)
    with torch.no_grad():
        scale.gamma.copy_(torch.arange(32))  # type: ignore[operator,union-attr]
        proj.weight.fill_(2)
        proj.bias.fill_(3)
    fold_norms(model)
    assert proj.weight[:, 0].tolist() == [2.0 * index for index in range(32)]
    assert proj.bias.tolist() == [3.0 * index for index in range(32)]
    assert isinstance(block.get_submodule("ls1"), Unscaled)


def test_a_layer_that_a_hook_changes_takes_up_nothing() -> None:
    model, data = KINDS["vit"].make(), KINDS["vit"].images(2)
    model.get_submodule("blocks.0.attn.qkv").register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    folded = copy.deepcopy(model)
    fold_norms(folded)
    torch.testing.assert_close(outputs(folded, data), outputs(model, data), rtol=1e-8, atol=1e-8)
    assert not isinstance(folded.get_submodule("blocks.0.norm1"), PlainNorm)
    assert isinstance(folded.get_submodule("blocks.0.norm2"), PlainNorm)
