"""Full forms on labels: resumed to the same bytes, equal on two processes, and within the budget when compressed."""

import copy
from pathlib import Path

import pytest
import torch

from lowrank_vit import compress, learn
from lowrank_vit.compression.recipes import FULL_FORMS
from lowrank_vit.modules.counting import parameter_count
from tests.support.finetuning import TinyData
from tests.support.gradual import IMAGES, PowerCutError, interrupt
from tests.support.hardware import on_cpu
from tests.support.models import tiny

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("recipe", FULL_FORMS)
def test_a_full_form_is_resumed_and_compressed(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run ends with the same bytes, weights and scores; the model keeps within its budget."""
    found = []
    for folder in (None, tmp_path):
        options = on_cpu(epochs=4, checkpoint_dir=folder, teacher=tiny())
        if folder is not None:
            with monkeypatch.context() as cut:
                interrupt(cut, 2)
                with pytest.raises(PowerCutError):
                    learn(tiny(), TinyData(noise=0.0), recipe, 0.3, **options)
        model = tiny()
        learnt = learn(model, TinyData(noise=0.0), recipe, 0.3, **options)
        small, report = compress(model, [IMAGES], recipe, 0.3, learnt=learnt)
        found.append((model.state_dict(), learnt.scores, small.state_dict()))
    assert not all(torch.equal(tensor, found[0][0][name]) for name, tensor in tiny().state_dict().items())
    assert 0.6 * parameter_count(model) < parameter_count(small) <= 0.7 * parameter_count(model)
    assert (report["recipe"], report["protocol"], report["learnt"]["epochs"]) == (recipe, "full-ft+kd", 4)
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FULL_FORMS)
def test_two_processes_equal_one_with_the_same_global_batch(recipe: str, tmp_path: Path) -> None:
    alone, data = tiny().double(), TinyData(noise=0.0)
    together, dense = copy.deepcopy(alone), copy.deepcopy(alone)
    options = {"epochs": 2, "precision": "64-true", "teacher": dense}
    one = learn(alone, data, recipe, 0.3, **on_cpu(**options))
    two = learn(together, data, recipe, 0.3, **on_cpu(**options, devices=2, checkpoint_dir=tmp_path))
    moved = together.state_dict()
    for name, value in alone.state_dict().items():
        assert torch.allclose(moved[name], value, rtol=1e-8, atol=1e-8), name
    for name, scores in one.scores.items():
        assert torch.allclose(two.scores[name].double(), scores.double(), rtol=1e-5, atol=1e-5), name
    assert two.described["expected"] == one.described["expected"]
