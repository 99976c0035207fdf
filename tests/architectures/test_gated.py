"""Gated MLPs in a whole model: what is kept of them against a dense float64 truth, and the way into every format."""

import pytest
import timm
import torch
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from torch import Tensor, nn

from lowrank_vit import analyse, get_recipe
from lowrank_vit.modules.low_rank_linear import SmallGatedMlp
from lowrank_vit.records.curves import RankPlan
from tests.support.models import VIT, images, outputs

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
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **arguments).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def input_of(model: nn.Module, data: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = model.get_submodule(NAME).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    outputs(model, data)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("gates", GATES)
class TestGates:
    def test_the_smaller_module_is_the_regression_of_the_dense_output_on_the_kept_units(self, gates: str) -> None:
        """Least squares by its definition: from all tokens at once, with the kept units as they are in the dense model."""
        model, data = gated(gates), images(24).double()
        recipe = get_recipe("heads").but(refit=False, measured=0, **{"mlp.damping": 0.0, "mlp.sensitivity": 0.0})
        analysis = analyse(model, data.split(8), recipe, device="cpu")
        plan = {curve.name: 20 if curve.name == f"{NAME}.hidden" else None for curve in analysis.curves}
        small = analysis.apply(RankPlan(plan))[0].get_submodule(NAME)
        kept = analysis.parts[NAME][f"{NAME}.hidden"].units.kept(20)
        x, mlp = input_of(model, data), model.get_submodule(NAME)
        with torch.no_grad():
            hidden, y = GATES[gates][1](mlp, x).flatten(0, 1), mlp(x).flatten(0, 1)
            regressors = torch.cat([hidden[:, kept], torch.ones(len(hidden), 1)], 1)
            truth = regressors @ torch.linalg.lstsq(regressors, y).solution
            assert isinstance(small, SmallGatedMlp)
            torch.testing.assert_close(small(x).flatten(0, 1), truth, rtol=1e-3, atol=1e-3 * float(y.std()))
            assert (truth - y).norm() > 0.02 * y.norm()
