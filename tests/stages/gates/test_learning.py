"""Training with gates: what is trained, what a run depends on, and that an interrupted one ends with the same bytes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowrank_vit import InputError, compress, learn
from lowrank_vit.stages.gates import GRADUAL
from lowrank_vit.stages.gates.learning import LearntGates
from lowrank_vit.stages.gates.learning import learn as learn_gates
from tests.support.gradual import IMAGES, PowerCutError, interrupt, run
from tests.support.hardware import CPU, on_cpu
from tests.support.models import tiny
from tests.support.weights import same, weights

METHODS = [name for name in GRADUAL.names() if GRADUAL.get(name).alone]


def equal(one: LearntGates, other: LearntGates) -> bool:
    return one.described == other.described and all(
        torch.equal(scores, other.scores[unit]) for unit, scores in one.scores.items()
    )


@pytest.mark.parametrize("name", METHODS)
def test_gates_alone_leave_the_weights_as_they_were(name: str) -> None:
    model, dense = tiny(), tiny()
    learnt = learn_gates(model, GRADUAL.get(name)(), teacher=dense, images=IMAGES, **on_cpu(epochs=2, batch_size=16))
    assert same(model, weights(dense))
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all((scores >= 0).all() and len(scores.unique()) > 1 for scores in learnt.scores.values())


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_ends_with_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(name)
    with monkeypatch.context() as cut:
        interrupt(cut, 2)
        with pytest.raises(PowerCutError):
            run(name, checkpoint_dir=tmp_path)
    assert (tmp_path / "last.ckpt").is_file()
    assert equal(run(name, checkpoint_dir=tmp_path), undisturbed)
    with pytest.raises(InputError, match=r"trained with target=0.6, not 0.5"):
        run(name, checkpoint_dir=tmp_path, target=0.5)


def test_the_seed_decides() -> None:
    assert equal(run("importance"), run("importance"))
    assert not equal(run("importance"), run("importance", seed=1))


def test_a_gate_follows_its_slope() -> None:
    """Without images' pull, the penalty alone moves every gate of Adam by its learning rate in the first step."""
    model = tiny()
    method = GRADUAL.get("importance")(sparsity=1e6, lr=1e-2)
    learnt = learn_gates(
        model, method, teacher=copy.deepcopy(model), images=IMAGES, **on_cpu(epochs=1, batch_size=40, target=0.5)
    )
    for scores in learnt.scores.values():
        torch.testing.assert_close(scores, torch.full_like(scores, 0.99), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either on images, with a teacher, or on a data module"),
        ({"images": IMAGES}, "either on images, with a teacher"),
        ({"images": IMAGES, "teacher": tiny(), "epochs": 0}, "epochs, batch_size and lr must be positive"),
    ],
)
def test_bad_settings_are_one_line(options: dict[str, Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        learn_gates(tiny(), GRADUAL.get("importance")(), hardware=CPU, progress=False, **options)


def test_full_forms_need_what_is_learnt() -> None:
    with pytest.raises(InputError, match=r"'vtp' learns on labelled images: call lowrank_vit.learn first"):
        compress(tiny(), [IMAGES], "vtp", 0.3)
    with pytest.raises(InputError, match="'vtp-gates' learns nothing on labelled images"):
        learn(tiny(), [], "vtp-gates")  # type: ignore[arg-type]
    other = LearntGates({}, {"protocol": "none"})
    with pytest.raises(InputError, match=r"nothing was learnt about blocks\.0"):
        compress(tiny(), [IMAGES], "vtp", 0.3, learnt=other)
