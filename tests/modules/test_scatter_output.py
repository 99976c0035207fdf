"""A layer that makes some of its outputs: the masked layer, wherever it stands, and nothing that cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_vit import InputError, compress, load, save
from lowrank_vit.modules import empty_replacement, replacement_entries
from lowrank_vit.modules.partial_linear import ScatterOutput
from tests.support.models import ARGUMENTS, images, outputs, tiny


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kept", [[0, 2, 3], [4], [], [0, 1, 2, 3, 4]])
def test_it_is_the_layer_with_zeros_in_the_other_outputs(bias: bool, kept: list[int]) -> None:
    linear, x = nn.Linear(3, 5, bias=bias).double(), torch.randn(2, 7, 3, dtype=torch.float64)
    small, mask = ScatterOutput.of(linear, torch.tensor(kept, dtype=torch.long)), torch.zeros(5, dtype=torch.float64)
    mask[kept] = 1
    torch.testing.assert_close(small(x), linear(x) * mask, rtol=1e-14, atol=1e-14)
    assert sum(parameter.numel() for parameter in small.parameters()) == len(kept) * (3 + bias)
    assert list(small.state_dict()) == (
        ["up.weight", "up.bias"] if bias else ["up.weight"]
    )  # indices are in its config


def test_it_is_made_again_from_its_entry() -> None:
    model = nn.Sequential(ScatterOutput.of(nn.Linear(3, 5), torch.tensor([1, 4])))
    entry = replacement_entries(model)["0"]
    assert entry == {"kind": "scatter", "in_features": 3, "out_features": 5, "kept": [1, 4], "bias": True}
    again = nn.Sequential(empty_replacement(entry, nn.Linear(3, 5)))
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("kept", [[2, 1], [1, 1], [5], [-1]])
def test_indices_that_are_none_are_refused(kept: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending indices below 5"):
        ScatterOutput(3, 5, kept)


def test_a_saved_model_with_fewer_outputs_is_loaded_and_checked(tmp_path: Path) -> None:
    model, data = tiny(), images(16)
    small, report = compress(model, [data], "wdp-gates", 0.3)
    assert any(isinstance(module, ScatterOutput) for module in small.modules())
    save(small, tmp_path / "small", report, model_args=ARGUMENTS["vit"])
    assert torch.equal(outputs(load(tmp_path / "small"), data), outputs(small, data))
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    name, entry = next(
        (name, entry) for name, entry in config["lowrank_vit"]["layers"].items() if entry.get("kind") == "scatter"
    )
    for wrong in (entry["kept"][::-1], [*entry["kept"][:-1], 10_000]):
        config["lowrank_vit"]["layers"][name] = {**entry, "kept": wrong}
        (tmp_path / "small" / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=r"config\.json"):
            load(tmp_path / "small")
