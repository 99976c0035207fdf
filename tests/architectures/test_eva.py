"""Plain EVA as a family: biases beside the layer, LayerScale as parameters."""

import copy

import pytest
import timm
import torch
from torch import nn

from lowrank_vit import analyse
from lowrank_vit.architectures.linears import call_every_layer, dense_linear, separate_bias
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.sites import AttentionSite
from lowrank_vit.stages.calibrate.stream import calibrate
from tests.support.models import modules_of, outputs

EVA = {"img_size": 28, "patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2, "in_chans": 1}
VARIANTS = {"plain": {}, "layer scale": {"init_values": 0.5}, "no bias": {"qkv_bias": False}}


def eva(**arguments: object) -> nn.Module:
    """A tiny EVA, float64, in which every layer and every bias matters."""
    torch.manual_seed(0)
    model = timm.create_model("eva_giant_patch14_224", num_classes=7, **EVA, **arguments).double().eval()
    for name, parameter in model.named_parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (name.endswith("norm.weight") or "gamma" in name)
    return model


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("variant", VARIANTS)
class TestEva:
    def test_all_directions_and_units_are_the_model_as_it_was(self, variant: str) -> None:
        model, data = eva(**VARIANTS[variant]), images(24)
        analysis = analyse(model, data.split(8), "heads", device="cpu")
        whole, _ = analysis.apply(RankPlan({curve.name: len(curve.errors) - 1 for curve in analysis.curves}))
        torch.testing.assert_close(outputs(whole, data), outputs(model, data), rtol=1e-8, atol=1e-8)


def test_the_logits_fisher_knows_the_separate_bias() -> None:
    """It is that of the same model with the biases in the layer, whose blocks timm's plain ViT has."""
    model, data = call_every_layer(eva()), images(6)
    site = next(each.qkv for each in modules_of(model) if isinstance(each, AttentionSite))
    needs = {site.name: {"head_fisher", "input_second"}}
    separate = calibrate(model, [site], needs, data.split(4))[site.name]
    joined = copy.deepcopy(model)
    attention = joined.get_submodule(site.name.rpartition(".")[0])
    bias = separate_bias(model, site)
    assert bias is not None
    assert bias.abs().max() > 0.1
    attention.qkv.bias = nn.Parameter(bias)
    attention.q_bias = attention.v_bias = attention.k_bias = None
    assert torch.equal(dense_linear(joined, site)[1], dense_linear(model, site)[1])
    torch.testing.assert_close(outputs(joined, data), outputs(model, data))
    whole = calibrate(joined, [site], needs, data.split(4))[site.name]
    for name in ("head_fisher_query", "head_fisher_key", "input_second"):
        torch.testing.assert_close(separate.mean(name), whole.mean(name), rtol=1e-5, atol=1e-9)
