"""Fewer tokens and smaller layers under one budget."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_vit import InputError, compress_with_fewer_tokens, get_recipe, load, save
from lowrank_vit.modules.counting import input_size, multiply_accumulates
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from tests.support.models import ARGUMENTS, images, outputs, tiny

BEST = get_recipe("best").but(refit=False, measured=0)


def macs(model: nn.Module) -> int:
    size = input_size(model)
    assert size is not None
    return multiply_accumulates(model, size)


@pytest.mark.parametrize("share", [0.5, 0.4])
def test_the_split_that_is_best_on_unseen_images_keeps_within_the_budget(share: float, tmp_path: Path) -> None:
    data, model = images(12, "vit"), tiny("vit")
    small, report = compress_with_fewer_tokens(
        model, data[:6].split(3), {"macs": share}, BEST, held_out=[data[6:]], device="cpu"
    )
    found: Any = report
    tried = found["shared"]["tried"]
    assert macs(small) <= share * macs(model)
    assert found["macs"] == {"dense": macs(model), "compressed": macs(small)}
    [divergence] = divergences(Classification(), model, [small], [data[6:]])
    assert divergence == pytest.approx(min(each["divergence"] for each in tried), rel=1e-4)
    kept = [each["parameters"] for each in tried]
    assert kept == sorted(kept, reverse=True)  # the less tokens save, the more layers have to
    save(small, tmp_path / "small", model_args=ARGUMENTS["vit"])
    assert torch.equal(outputs(load(tmp_path / "small"), data), outputs(small, data))


def test_a_budget_that_tokens_do_not_serve_is_refused_where_they_were_asked_for() -> None:
    with pytest.raises(InputError, match="fewer tokens share no budget of parameters"):
        compress_with_fewer_tokens(tiny("vit"), [images(6, "vit")], "params=0.6", BEST)
    with pytest.raises(InputError, match="cannot become fewer"):
        compress_with_fewer_tokens(tiny("swin"), [images(6, "swin")], "macs=0.6", BEST)
