"""Models whose sizes and bits are chosen together: their files, what they compute, and what is refused."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch

import lowrank_vit
from lowrank_vit import compress
from lowrank_vit.compression.joint.forms import cut_form, linears
from lowrank_vit.compression.joint.fronts import PAGE, Front
from lowrank_vit.compression.joint.planning import JointPlan, JointPlanner
from lowrank_vit.modules.counting import saved_bytes
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.records.budgets import budget_of
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.quantize.gptq import ErrorFeedback
from tests.support.models import VIT, images, outputs, tiny

pytestmark = pytest.mark.slow

BITS = (2, 3, 4, 8)


WIDE = {**VIT, "embed_dim": 48}  # so that a file is not mostly its header


@pytest.mark.parametrize("recipe", ["heads", "loss_aware"])
@pytest.mark.parametrize("share", [0.45, 0.7])
def test_the_file_is_at_most_one_per_cent_below_the_budget(recipe: str, share: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **WIDE).eval()
    limit = int(share * saved_bytes(model, torch.float16))
    small, report = compress(model, [images(12)], recipe, budget=f"bytes={limit}B", bits=BITS)
    lowrank_vit.save(small, tmp_path / "small", report, model_args=WIDE)
    size = lowrank_vit.file_bytes(tmp_path / "small")
    assert 0.99 * limit <= size <= limit
    assert report["budget"]["counted"] == size
    found = {name: each.bits for name, each in small.named_modules() if isinstance(each, QuantizedLinear)}
    assert found == report["quantization"]["layer_bits"]
    assert set(found.values()) <= set(BITS)
    assert torch.equal(outputs(lowrank_vit.load(tmp_path / "small"), images(4)), outputs(small, images(4)))


def test_a_form_tells_the_shapes_of_every_size() -> None:
    """Against modules that are folded at other sizes than those that the form was found from."""
    analysis = lowrank_vit.analyse(tiny(), [images(12)], "heads")
    for decomposed in analysis.decomposed:
        curves = analysis.curves_by_unit[decomposed.unit.name]
        form = cut_form(decomposed, curves, analysis.model.get_submodule(decomposed.unit.name), 4)
        assert form is not None
        assert form.whole
        for terms in form.terms[1::3]:
            module = decomposed.cut(dict(zip(form.sizes, terms[1:].tolist(), strict=True))).fold()
            found = {f"{decomposed.unit.name}.{name}": layer for name, layer in linears(module).items()}
            assert [(layer.name, terms @ layer.rows, terms @ layer.columns) for layer in form.layers] == [
                (name, *layer.weight.shape) for name, layer in found.items()
            ]
            weights = sum(layer.weight.numel() for layer in found.values())
            assert terms @ form.rest == sum(each.numel() for each in module.parameters()) - weights


class Dearer(JointPlanner):
    """Files that are larger than their prices say."""

    surplus = 1700  # bytes

    def _chosen(self, fronts: Mapping[str, Front], ranks: RankPlan) -> JointPlan:
        return JointPlan(ranks, {})

    def count(self, plan: JointPlan) -> int:
        (front,) = ONE_MODULE.values()
        saved = PAGE * (front.curve.dense_cost - front.curve.cost(plan.sizes.ranks["module"]))
        return saved_bytes(self.whole, torch.float16) - saved + self.surplus


CURVE = ErrorCurve("module", torch.tensor([9.0, 9.0, 1.0]).double(), 0, 0, table=(100, 100, 1000, 2000))
ONE_MODULE = {"module": Front(CURVE, ())}


def test_a_plan_that_is_too_large_is_left_for_the_next_cheaper_one() -> None:
    """There is none within many pages, and prices a page lower would buy the same plan again."""
    planner = Dearer(lowrank_vit.analyse(tiny(), [images(12)], "best"), (8,), ErrorFeedback())
    limit = saved_bytes(planner.whole, torch.float16) - PAGE * 900
    plan, counted = planner._within(ONE_MODULE, limit, budget_of(f"bytes={limit}B"))
    assert plan.sizes.ranks == {"module": 1}
    assert counted <= limit
