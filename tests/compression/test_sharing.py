"""Fewer tokens and smaller layers under one budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_vit import compress_with_fewer_tokens, get_recipe, load, save
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from tests.support.models import ARGUMENTS, images, outputs, tiny

BEST = get_recipe("best").but(refit=False, measured=0)
RULES = {"tome": "r", "evit": "keep"}


def macs(model: nn.Module) -> int:
    size = input_size(model)
    assert size is not None
    return multiply_accumulates(model, size)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_the_split_that_is_best_on_unseen_images_keeps_within_the_budget(rule: str, tmp_path: Path) -> None:
    data, model = images(12, "vit"), tiny("vit")
    small, report = compress_with_fewer_tokens(
        model, data[:6].split(3), {"macs": 0.6}, BEST, held_out=[data[6:]], rule=rule
    )
    found: Any = report
    tried = found["shared"]["tried"]
    assert macs(small) <= 0.6 * macs(model)
    assert found["macs"] == {"dense": macs(model), "compressed": macs(small)}
    [divergence] = divergences(Classification(), model, [small], [data[6:]])
    assert divergence == pytest.approx(min(each["divergence"] for each in tried), rel=1e-6)
    assert RULES[rule] not in tried[0]  # all tokens
    assert tried[-1]["parameters"] == parameter_count(model)  # no layer smaller
    kept = [each["parameters"] for each in tried]
    assert kept == sorted(kept)  # the more tokens save, the less layers have to
    assert len(set(kept)) > 2
    save(small, tmp_path / "small", model_args=ARGUMENTS["vit"])
    assert torch.equal(outputs(load(tmp_path / "small"), data), outputs(small, data))
