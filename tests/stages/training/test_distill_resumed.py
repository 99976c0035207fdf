"""A distillation that is interrupted and goes on is that of an undisturbed run, or is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank_vit import InputError
from tests.support.distilling import IMAGES, PowerCutError, interrupt, run, student
from tests.support.models import images, tiny
from tests.support.weights import same, weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("augmented", [{}, {"crop_scale": (0.6, 1.0)}, {"mix": 0.5}])
def test_interrupted_and_resumed_equals_undisturbed(
    augmented: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**augmented, "held_out": images(10, seed=2)}
    undisturbed, model = student(), student()
    whole = run(undisturbed, checkpoint_dir=tmp_path / "a", **options)
    with monkeypatch.context() as patched:
        interrupt(patched, 1)
        with pytest.raises(PowerCutError):
            run(model, checkpoint_dir=tmp_path / "b", **options)
    torch.manual_seed(99)  # the state of the caller's generator must not matter
    model = student()
    resumed = run(model, checkpoint_dir=tmp_path / "b", **options)
    assert same(model, undisturbed)
    assert resumed.describe() == whole.describe()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["last.ckpt"]
    # a finished run is not repeated
    again = student()
    finished = run(again, checkpoint_dir=tmp_path / "b", **options)
    assert same(again, undisturbed)
    assert finished.describe() == whole.describe()
    saved = torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == {f"model.{name}" for name in model.state_dict()} | {"last_kl", "kl_held_out"}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    # float64: the key's bias has no gradient but rounding, which AdamW would turn into whole steps
    alone, together, dense = student().double(), student().double(), tiny().double()
    options = {"epochs": 2, "precision": "64-true", "crop_scale": (0.6, 1.0), "held_out": images(9, seed=2).double()}
    one = run(alone, IMAGES.double(), dense, **options)
    two = run(together, IMAGES.double(), dense, devices=2, checkpoint_dir=tmp_path, **options)
    moved = weights(together)
    for name, value in weights(alone).items():
        assert torch.allclose(moved[name], value, rtol=1e-9, atol=1e-9), name
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    a, b = one.describe(), two.describe()
    assert b["train_kl"] == pytest.approx(a["train_kl"], rel=1e-6)
    assert b["kl_held_out"] == pytest.approx(a["kl_held_out"], rel=1e-6)
    with pytest.raises(InputError, match="cannot be shared by 2 processes"):
        run(student(), devices=2, batch_size=15)
