"""Fewer tokens end to end, in dense and compressed models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_vit import InputError, compress, fewer_tokens, get_recipe, load, save
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.token_block import TokenBlock
from lowrank_vit.stages.tokens import TOKENS, LearntRule
from tests.support.cases import few
from tests.support.finetuning import TinyData
from tests.support.hardware import on_cpu
from tests.support.models import ARGUMENTS, images, outputs, tiny

RULES = TOKENS.names()
BEST = get_recipe("best").but(refit=False, measured=0)


def learning(rule: str) -> dict[str, Any]:
    """What a rule learns on, if it learns."""
    made = TOKENS.get(rule)()
    if not isinstance(made, LearntRule):
        return {}
    training = on_cpu(epochs=1)
    return {"learn_on": TinyData(noise=0.0) if made.labelled else [images(16)], "training": training}


def macs(model: nn.Module) -> int:
    size = input_size(model)
    assert size is not None
    return multiply_accumulates(model, size)


@pytest.mark.parametrize(("rule", "nothing"), [("tome", {"r": 0}), ("evit", {"keep": 1.0}), ("pitome", {"keep": 1.0})])
@pytest.mark.parametrize("smaller", few([False, True], 1))
def test_nothing_merged_is_the_model_as_it_was(rule: str, nothing: dict[str, float], smaller: bool) -> None:
    model, data = tiny("vit").double(), images(6, "vit").double()
    model = compress(model, data.split(3), BEST, 0.3)[0] if smaller else model
    same = fewer_tokens(model, rule, **nothing)
    torch.testing.assert_close(outputs(same, data), outputs(model, data), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rule", "options"), [("tome", {"r": 2}), ("evit", {"keep": 0.5}), ("pitome", {"keep": 0.9})])
def test_multiply_accumulates_fall_in_a_real_forward_pass_and_parameters_stay(
    rule: str, options: dict[str, float]
) -> None:
    model, data = tiny("vit"), images(6, "vit")
    small = fewer_tokens(model, rule, **options)
    assert macs(small) < macs(model)
    assert parameter_count(small) == parameter_count(model)
    assert outputs(small, data).isfinite().all()
    assert not any(isinstance(module, TokenBlock) for module in model.modules())  # the model itself is not changed


@pytest.mark.parametrize(("rule", "options"), [("tome", {"r": 2}), ("evit", {"keep": 0.5}), ("pitome", {"keep": 0.9})])
def test_a_compressed_model_with_fewer_tokens_is_loaded_as_it_was_saved(
    rule: str, options: dict[str, float], tmp_path: Path
) -> None:
    model, data = tiny("vit"), images(6, "vit")
    smaller, _ = compress(model, data.split(3), BEST, 0.3)
    small = fewer_tokens(smaller, rule, **options)
    report = small.compression_report
    assert report["macs"]["compressed"] == macs(small) < macs(smaller)  # type: ignore[index, call-overload]
    assert report["tokens"]["rule"] == rule  # type: ignore[index, call-overload]
    save(small, tmp_path / "small", model_args=ARGUMENTS["vit"])
    again = load(tmp_path / "small")
    assert torch.equal(outputs(again, data), outputs(small, data))
    assert any(isinstance(module, LowRankAttention) for module in again.modules())


@pytest.mark.parametrize("rule", few(RULES, 1))
@pytest.mark.parametrize("smaller", few([True, False], 1))
def test_a_share_of_multiply_accumulates_is_met_by_the_least_strength(rule: str, smaller: bool) -> None:
    model = tiny("vit")
    start = compress(model, images(6, "vit").split(3), BEST, 0.2)[0] if smaller else model
    small: Any = fewer_tokens(start, rule, macs=0.7, **learning(rule))
    assert macs(small) <= 0.7 * macs(model)
    strengths = TOKENS.get(rule)().strengths(16)
    counts = [macs(each(start)) for each in strengths]
    if rule != "pitome":  # it compares all with all in every block, which costs more than the first few pairs save
        assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]
    assert macs(small) == next(count for count in counts if count <= 0.7 * macs(model))
    if smaller:
        assert small.compression_report["macs"] == {"dense": macs(model), "compressed": macs(small)}


def test_a_share_of_patches_needs_their_number() -> None:
    model: Any = tiny("vit")
    del model.patch_embed.num_patches
    with pytest.raises(InputError, match="does not say how many patches"):
        fewer_tokens(model, "pitome", keep=0.9)
