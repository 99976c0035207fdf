"""Training with gates: what is trained, what a run depends on, and that an interrupted one ends with the same bytes."""

import copy
from pathlib import Path

import pytest
import torch

from lowrank_vit import InputError
from lowrank_vit.stages.gates import GRADUAL
from lowrank_vit.stages.gates.learn_gates import LearntGates, learn_gates
from tests.support.gradual import IMAGES, PowerCutError, interrupt, run
from tests.support.hardware import on_cpu
from tests.support.models import tiny

METHODS = [name for name in GRADUAL.names() if GRADUAL.get(name).alone]


def equal(one: LearntGates, other: LearntGates) -> bool:
    return one.described == other.described and all(
        torch.equal(scores, other.scores[unit]) for unit, scores in one.scores.items()
    )


@pytest.mark.slow
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


def test_a_gate_follows_its_slope() -> None:
    """Without images' pull, the penalty alone moves every gate of Adam by its learning rate in the first step."""
    model = tiny()
    method = GRADUAL.get("importance")(sparsity=1e6, lr=1e-2)
    learnt = learn_gates(
        model, method, teacher=copy.deepcopy(model), images=IMAGES, **on_cpu(epochs=1, batch_size=40, target=0.5)
    )
    for scores in learnt.scores.values():
        torch.testing.assert_close(scores, torch.full_like(scores, 0.99), rtol=0, atol=1e-5)
