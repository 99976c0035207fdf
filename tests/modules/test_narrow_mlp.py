"""The smaller MLPs against timm's, with gates and without: by their definition, hidden unit by hidden unit."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import GluMlp, Mlp, SwiGLU, SwiGLUPacked
from torch import Tensor, nn

from lowrank_vit.architectures.parts import described_mlp, described_mlp_weights
from lowrank_vit.modules import empty_replacement, replacement_entries
from lowrank_vit.modules.fold import fold_mlp
from lowrank_vit.modules.low_rank_linear import SmallMlp
from lowrank_vit.records.sites import HIDDEN, MlpSite
from lowrank_vit.runtime.errors import InputError

N, HIDDEN_UNITS, D = 5, 8, 3


def halves(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = module.fc1(x).chunk(2, -1)
    return first, second


KINDS = {  # a module of timm's, and its hidden units
    "plain": (partial(Mlp, N, HIDDEN_UNITS, D), lambda m, x: F.gelu(m.fc1(x))),
    "no bias": (partial(Mlp, N, HIDDEN_UNITS, D, bias=False), lambda m, x: F.gelu(m.fc1(x))),
    "swiglu": (partial(SwiGLU, N, HIDDEN_UNITS, D), lambda m, x: F.silu(m.fc1_g(x)) * m.fc1_x(x)),
    "swiglu, no bias": (partial(SwiGLU, N, HIDDEN_UNITS, D, bias=False), lambda m, x: F.silu(m.fc1_g(x)) * m.fc1_x(x)),
    "packed": (partial(SwiGLUPacked, N, 2 * HIDDEN_UNITS, D), lambda m, x: F.silu(halves(m, x)[0]) * halves(m, x)[1]),
    "gate last": (
        partial(GluMlp, N, 2 * HIDDEN_UNITS, D),
        lambda m, x: halves(m, x)[0] * torch.sigmoid(halves(m, x)[1]),
    ),
    "geglu": (
        partial(GluMlp, N, 2 * HIDDEN_UNITS, D, act_layer=nn.GELU, gate_last=False, bias=(False, True)),
        lambda m, x: F.gelu(halves(m, x)[0]) * halves(m, x)[1],
    ),
}


class Holder(nn.Module):
    """A model with nothing but an MLP."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mlp = KINDS[kind][0]().double().eval()
        for parameter in self.mlp.parameters():
            parameter.data = torch.randn_like(parameter)

    @property
    def site(self) -> MlpSite:
        site = described_mlp("mlp", self.mlp)
        assert site is not None
        return site


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_kept_units_are_the_dense_ones_and_all_are_the_module_as_it_was(self, kind: str) -> None:
        """With any second layer: what it gets are the dense module's hidden units, those that were kept."""
        model, x = Holder(kind), torch.randn(2, 4, N, dtype=torch.float64)
        weights = described_mlp_weights(model, model.site)
        output, bias = torch.randn(HIDDEN_UNITS, D, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
        dense = torch.zeros(D).double() if model.mlp.fc2.bias is None else model.mlp.fc2.bias
        with torch.no_grad():
            for kept in (torch.tensor([1, 2, 6]), torch.arange(HIDDEN_UNITS)):
                small = fold_mlp(model.site, weights, kept, output[kept], bias)
                torch.testing.assert_close(small(x), KINDS[kind][1](model.mlp, x)[..., kept] @ output[kept] + bias)
            whole = fold_mlp(model.site, weights, torch.arange(HIDDEN_UNITS), model.mlp.fc2.weight.T, dense)
            torch.testing.assert_close(whole(x), model.mlp(x))

    def test_costs_are_those_of_the_module(self, kind: str) -> None:
        """The dense one's, and those of a smaller one, in parameters and in multiply-accumulates of seven tokens."""
        model = Holder(kind)
        site, costs = model.site, model.site.costs(7)[HIDDEN]
        assert costs.count == HIDDEN_UNITS
        assert costs.dense.parameters == sum(p.numel() for p in model.mlp.parameters())
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        assert costs.dense.macs == 7 * sum(layer.weight.numel() for layer in linears)
        weights = described_mlp_weights(model, site)
        small = fold_mlp(site, weights, torch.tensor([0, 3]), torch.zeros(2, D), torch.zeros(D))
        assert costs.fixed.parameters + 2 * costs.unit.parameters == sum(p.numel() for p in small.parameters())
        assert 2 * costs.unit.macs == 7 * (small.fc1.weight.numel() + small.fc2.weight.numel())

    def test_it_is_made_again_from_its_entry(self, kind: str) -> None:
        model, x = Holder(kind), torch.randn(2, N, dtype=torch.float64)
        weights = described_mlp_weights(model, model.site)
        small = Holder(kind)
        ones = torch.ones(3, D).double()
        small.mlp = fold_mlp(model.site, weights, torch.tensor([0, 5]), ones[:2], ones[2])
        again = empty_replacement(replacement_entries(small)["mlp"], model.mlp).double()
        again.load_state_dict(small.mlp.state_dict(), strict=True)
        assert type(again) is type(small.mlp)
        assert (type(again) is SmallMlp) == (kind in ("plain", "no bias"))
        assert torch.equal(again(x), small.mlp(x))


REFUSED: list[tuple[nn.Module, str]] = [
    (Mlp(4, norm_layer=nn.LayerNorm), r"'mlp' normalises its hidden units \(norm\)"),
    (SwiGLU(4, norm_layer=nn.LayerNorm), r"'mlp' normalises its hidden units \(norm\)"),
    (Mlp(4, use_conv=True), r"'mlp.fc1' is a Conv2d, no linear layer"),
    (Mlp(4, act_layer=partial(nn.PReLU, 4)), r"'mlp' has an activation function with weights"),
]


def test_what_does_not_go_unit_by_unit_is_refused() -> None:
    for module, message in REFUSED:
        with pytest.raises(InputError, match=message):
            described_mlp("mlp", module)
