"""Inputs and inner parts that go: whatever the kind of model, what goes is replaced by its mean."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import Analysis, Recipe, analyse
from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.methods.vtp import ImportanceGates, LearntColumns
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count
from lowrank_vit.modules.partial_linear import SelectInput
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.sites import AttentionSite
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.learnt_gates import LearntGates, make_gates, sites_of
from tests.support.cases import few, in_turn
from tests.support.kinds import KINDS, VIT, Kind, vit
from tests.support.models import inputs_of, outputs, padded_swin

RECIPE = Recipe(name="random", units={"columns": LearntColumns()}, gradual=ImportanceGates(), labelled=True)
SOME = ["vit", "no qkv bias", "q and k norm", "swiglu", "swiglu, apart", "beit", "eva02", "swin", "swin v2"]
SOME += ["parallel things", "attention pooling", "relative position mlp", "gated mixer", "convnext", "padded"]
SOME += ["no biases"]  # where the MLP's first layer gets one, for the mean of its inputs
NO_BIASES = Kind(VIT, vit(qkv_bias=False, proj_bias=False))


def made(kind: str) -> tuple[nn.Module, Tensor]:
    if kind == "padded":
        return padded_swin(), torch.randn(6, 1, 12, 12, generator=torch.Generator().manual_seed(1)).double()
    made = NO_BIASES if kind == "no biases" else KINDS[kind]
    return canonical(made.make()), made.images(6)


def analysed(model: nn.Module, data: Tensor) -> Analysis:
    """An analysis by random scores."""
    torch.manual_seed(4)
    scores = {name: torch.rand(gate.place.count) for name, gate in make_gates(model, ImportanceGates()).items()}
    return analyse(model, [data], RECIPE, learnt=LearntGates(scores, {"protocol": "none"}))


def averaged(layer: nn.Module, kept: Tensor, mean: Tensor) -> None:
    """Have a layer read the mean of the inputs that are not kept."""

    def see(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        x = mean.expand_as(inputs[0]).clone()
        x[..., kept] = inputs[0][..., kept]
        return (x,)

    layer.register_forward_pre_hook(see)


@pytest.mark.parametrize(("share", "kind"), few(in_turn([0.1, 0.6], SOME), 3))
def test_what_goes_is_replaced_by_its_mean(kind: str, share: float) -> None:
    """Parameters and multiply-accumulates are those that gates tell, too."""
    model, data = made(kind)
    analysis, same = analysed(model, data), copy.deepcopy(model)
    plan = RankPlan({curve.name: max(2, int(share * curve.ranks[-1])) for curve in analysis.curves})
    small, report = analysis.apply(plan)
    opens, read = dict[str, Tensor](), 0
    for decomposed in analysis.decomposed:
        layers, rank = decomposed.linears, plan.ranks[f"{decomposed.name}.part"]
        inner, inputs = decomposed.parts[f"{decomposed.name}.part"].kept(rank)
        seen = inputs_of(model, [layer.name for layer in layers], data)
        means = {name: x.flatten(0, -2).mean(0) for name, x in seen.items()}
        averaged(same.get_submodule(layers[-1].name), inner, means[layers[-1].name])
        unit = "value" if isinstance(decomposed.site, AttentionSite) else "hidden"
        opens[f"{decomposed.name}.{unit}"] = torch.isin(torch.arange(layers[-1].in_features), inner)
        if inputs is not None:
            assert 0 < len(inputs) < layers[0].in_features
            averaged(same.get_submodule(layers[0].name), inputs, means[layers[0].name])
            opens[f"{decomposed.name}.input"] = torch.isin(torch.arange(layers[0].in_features), inputs)
            read += 1
    torch.testing.assert_close(outputs(small, data), outputs(same, data), rtol=1e-5, atol=1e-5)
    assert read == sum("input" in layer["details"] for layer in report["layers"])
    assert read == sum(any(isinstance(own, SelectInput) for own in each.children()) for each in small.modules())
    cost = Prices.of(model, sites_of(model)).expected(opens)
    assert cost.parameters == parameter_count(small)
    assert cost.macs == multiply_accumulates(small, input_size(model))
    for curve in analysis.curves:
        whole, rank = sum(p.numel() for p in small.get_submodule(curve.name[:-5]).parameters()), plan.ranks[curve.name]
        others = curve.cost(None) - sum(p.numel() for p in model.get_submodule(curve.name[:-5]).parameters())
        assert curve.cost(rank) == whole + others
