"""Gated MLPs and plain EVA in a whole model: what is kept against a dense float64 truth, biases beside the layer."""

import copy

import pytest
import timm
import torch
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from torch import nn

from lowrank_vit import analyse, get_recipe
from lowrank_vit.architectures.linears import call_every_layer, dense_linear, separate_bias
from lowrank_vit.modules.low_rank_linear import SmallGatedMlp
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.sites import AttentionSite
from lowrank_vit.stages.calibrate.stream import calibrate
from tests.support.models import VIT, images, inputs_of, modules_of, outputs, stirred

NAME = "blocks.0.mlp"
GATES = {
    "packed": (SwiGLUPacked, lambda mlp, x: nn.functional.silu(mlp.fc1(x)[..., :32]) * mlp.fc1(x)[..., 32:]),
    "apart": (SwiGLU, lambda mlp, x: nn.functional.silu(mlp.fc1_g(x)) * mlp.fc1_x(x)),
    "last": (GluMlp, lambda mlp, x: mlp.fc1(x)[..., :32] * nn.functional.gelu(mlp.fc1(x)[..., 32:])),
}


def gated(gates: str) -> nn.Module:
    """A tiny ViT with 32 hidden units, float64."""
    torch.manual_seed(0)
    layer, act = GATES[gates][0], nn.GELU if gates == "last" else nn.SiLU
    arguments = {**VIT, "mlp_layer": layer, "mlp_ratio": 2 if layer is SwiGLU else 4, "act_layer": act}
    return stirred(timm.create_model("vit_tiny_patch16_224", **arguments).double().eval())


@pytest.mark.parametrize("gates", GATES)
def test_the_smaller_module_is_the_regression_of_the_dense_output_on_the_kept_units(gates: str) -> None:
    """Least squares by its definition: from all tokens at once, with the kept units as they are in the dense model."""
    model, data = gated(gates), images(24).double()
    recipe = get_recipe("heads").but(refit=False, measured=0, **{"mlp.damping": 0.0, "mlp.sensitivity": 0.0})
    analysis = analyse(model, data.split(8), recipe, device="cpu")
    plan = {curve.name: 20 if curve.name == f"{NAME}.hidden" else None for curve in analysis.curves}
    small = analysis.apply(RankPlan(plan))[0].get_submodule(NAME)
    kept = analysis.parts[NAME][f"{NAME}.hidden"].units.kept(20)
    x, mlp = inputs_of(model, [NAME], data)[NAME], model.get_submodule(NAME)
    with torch.no_grad():
        hidden, y = GATES[gates][1](mlp, x).flatten(0, 1), mlp(x).flatten(0, 1)
        regressors = torch.cat([hidden[:, kept], torch.ones(len(hidden), 1)], 1)
        truth = regressors @ torch.linalg.lstsq(regressors, y).solution
        assert isinstance(small, SmallGatedMlp)
        torch.testing.assert_close(small(x).flatten(0, 1), truth, rtol=1e-3, atol=1e-3 * float(y.std()))
        assert (truth - y).norm() > 0.02 * y.norm()


EVA = {"img_size": 28, "patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2, "in_chans": 1}
VARIANTS = {"plain": {}, "layer scale": {"init_values": 0.5}, "no bias": {"qkv_bias": False}}


def eva(**arguments: object) -> nn.Module:
    """A tiny EVA, float64, in which every layer and every bias matters."""
    torch.manual_seed(0)
    model = timm.create_model("eva_giant_patch14_224", num_classes=7, **EVA, **arguments).double().eval()
    for name, parameter in model.named_parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (name.endswith("norm.weight") or "gamma" in name)
    return model


def wide_images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_directions_and_units_are_the_model_as_it_was(variant: str) -> None:
    model, data = eva(**VARIANTS[variant]), wide_images(24)
    analysis = analyse(model, data.split(8), "heads", device="cpu")
    whole, _ = analysis.apply(RankPlan({curve.name: len(curve.errors) - 1 for curve in analysis.curves}))
    torch.testing.assert_close(outputs(whole, data), outputs(model, data), rtol=1e-8, atol=1e-8)


def test_the_logits_fisher_knows_the_separate_bias() -> None:
    """It is that of the same model with the biases in the layer, whose blocks timm's plain ViT has."""
    model, data = call_every_layer(eva()), wide_images(6)
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
