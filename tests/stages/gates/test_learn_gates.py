"""Training with gates, alone and with the weights: what moves, resumed to the same bytes, equal on two processes."""

import copy
from pathlib import Path

import pytest
import torch

from lowrank_vit import InputError, compress, learn
from lowrank_vit.compression.recipes import FULL_FORMS
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.stages.gates import GRADUAL
from lowrank_vit.stages.gates.learn_gates import LearntGates, learn_gates
from lowrank_vit.stages.gates.train_gates import GradualTraining
from tests.support.finetuning import TinyData
from tests.support.gradual import IMAGES, run
from tests.support.hardware import on_cpu
from tests.support.models import same, tiny, weights
from tests.support.power_cuts import PowerCutError, interrupt

METHODS = [name for name in GRADUAL.names() if GRADUAL.get(name).alone]


def equal(one: LearntGates, other: LearntGates) -> bool:
    return one.described == other.described and same(one.scores, other.scores)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_ends_with_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(name)
    with monkeypatch.context() as cut:
        interrupt(cut, GradualTraining, 2)
        with pytest.raises(PowerCutError):
            run(name, checkpoint_dir=tmp_path)
    assert (tmp_path / "last.ckpt").is_file()
    assert equal(run(name, checkpoint_dir=tmp_path), undisturbed)
    with pytest.raises(InputError, match=r"trained with target=0.6, not 0.5"):
        run(name, checkpoint_dir=tmp_path, target=0.5)


def test_a_gate_follows_its_slope() -> None:
    """Without images' pull, the penalty alone moves every gate of Adam by its learning rate in the first step."""
    model = tiny()
    method = GRADUAL.get("importance")(sparsity=1e6, lr=1e-2)
    learnt = learn_gates(
        model, method, teacher=copy.deepcopy(model), images=IMAGES, **on_cpu(epochs=1, batch_size=40, target=0.5)
    )
    for scores in learnt.scores.values():
        torch.testing.assert_close(scores, torch.full_like(scores, 0.99), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FULL_FORMS)
def test_a_full_form_is_resumed_and_compressed(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run ends with the same bytes, weights and scores; the model keeps within its budget."""
    found = []
    for folder in (None, tmp_path):
        options = on_cpu(epochs=4, checkpoint_dir=folder, teacher=tiny())
        if folder is not None:
            with monkeypatch.context() as cut:
                interrupt(cut, GradualTraining, 2)
                with pytest.raises(PowerCutError):
                    learn(tiny(), TinyData(noise=0.0), recipe, 0.3, **options)
        model = tiny()
        learnt = learn(model, TinyData(noise=0.0), recipe, 0.3, **options)
        small, report = compress(model, [IMAGES], recipe, 0.3, learnt=learnt)
        found.append((model, learnt.scores, small))
    assert not same(tiny(), found[0][0])
    assert 0.6 * parameter_count(model) < parameter_count(small) <= 0.7 * parameter_count(model)
    assert (report["recipe"], report["protocol"], report["learnt"]["epochs"]) == (recipe, "full-ft+kd", 4)
    assert all(map(same, *found))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["wdpruning", "s2vite", "losparse"])  # those that keep more than gradients
def test_two_processes_equal_one_with_the_same_global_batch(recipe: str, tmp_path: Path) -> None:
    alone, data = tiny().double(), TinyData(noise=0.0)
    together, dense = copy.deepcopy(alone), copy.deepcopy(alone)
    options = {"epochs": 2, "precision": "64-true", "teacher": dense}
    one = learn(alone, data, recipe, 0.3, **on_cpu(**options))
    two = learn(together, data, recipe, 0.3, **on_cpu(**options, devices=2, checkpoint_dir=tmp_path))
    torch.testing.assert_close(weights(together), weights(alone), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(two.scores, one.scores, rtol=1e-5, atol=1e-5, check_dtype=False)
    assert two.described["expected"] == one.described["expected"]
