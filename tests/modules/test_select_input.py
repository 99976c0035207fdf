"""A layer that reads some of its inputs: the masked layer, wherever it stands, and nothing that cannot be one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_vit import InputError, compress, load, save
from lowrank_vit.modules import empty_replacement, replacement_entries
from lowrank_vit.modules.partial_linear import SelectInput
from tests.support.models import ARGUMENTS, images, outputs, tiny


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kept", [[0, 2, 3], [4], [0, 1, 2, 3, 4]])
def test_it_is_the_layer_with_zeros_in_the_other_columns(bias: bool, kept: list[int]) -> None:
    linear, x = nn.Linear(5, 3, bias=bias).double(), torch.randn(2, 7, 5, dtype=torch.float64)
    small, mask = SelectInput.of(linear, torch.tensor(kept)), torch.zeros(5, dtype=torch.float64)
    mask[kept] = 1
    torch.testing.assert_close(small(x), linear(x * mask), rtol=1e-14, atol=1e-14)
    assert sum(parameter.numel() for parameter in small.parameters()) == 3 * (len(kept) + bias)
    assert list(small.state_dict()) == (
        ["up.weight", "up.bias"] if bias else ["up.weight"]
    )  # indices are in its config


def test_it_is_made_again_from_its_entry() -> None:
    model = nn.Sequential(SelectInput.of(nn.Linear(5, 3), torch.tensor([1, 4])))
    entry = replacement_entries(model)["0"]
    assert entry == {"kind": "select", "in_features": 5, "out_features": 3, "kept": [1, 4], "bias": True}
    again = nn.Sequential(empty_replacement(entry, nn.Linear(5, 3)))
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(again(x), model(x))
    with pytest.raises(ValueError, match="in_features is 5, of a layer that is given 6"):
        empty_replacement(entry, nn.Linear(6, 3))


@pytest.mark.parametrize("kept", [[2, 1], [1, 1], [5], [-1], [0.5], [True], ["1"], [[1]]])
def test_indices_that_are_none_are_refused(kept: list[Any]) -> None:
    with pytest.raises(ValueError, match="ascending indices below 5"):
        SelectInput(5, 3, kept)


def test_a_saved_model_with_fewer_inputs_is_loaded_and_checked(tmp_path: Path) -> None:
    model, data = tiny(), images(16)
    small, report = compress(model, [data], "vtp-gates", 0.4)
    assert any(isinstance(module, SelectInput) for module in small.modules())
    save(small, tmp_path / "small", report, model_args=ARGUMENTS["vit"])
    assert torch.equal(outputs(load(tmp_path / "small"), data), outputs(small, data))
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    name, entry = next(
        (name, entry) for name, entry in config["lowrank_vit"]["layers"].items() if entry.get("kind") == "select"
    )
    kept, width = entry["kept"], entry["in_features"]
    reads = [{"kept": wrong} for wrong in (kept[::-1], [*kept[:-1], 10_000], kept[1:], [*map(float, kept)], "all")]
    for wrong in (*reads, {"kept": [*kept[:-1], width], "in_features": width + 1}):
        config["lowrank_vit"]["layers"][name] = {**entry, **wrong}
        (tmp_path / "small" / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError):
            load(tmp_path / "small")
