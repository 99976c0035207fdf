"""What the open choices of the fine-tune do: each measure against the same steps by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from experiments.jobs.job import Job
from lowrank_vit import Hardware, compress, evaluate, finetune
from tests.experiments.support.untrained import data_for, dense, job_for, run

CPU = Hardware(accelerator="cpu")


def job(measure: str, model: str = "digits_deit_small") -> Job:
    return replace(job_for(measure, model), recipe="exact", reduction=0.4, epochs=1, lr=1e-2)


@pytest.mark.parametrize(
    ("measure", "batch_size", "options"),
    [
        ("finetune", 64, {}),
        ("finetune_weight_decay", 64, {"weight_decay": 0.05}),
        ("finetune_hard_labels", 64, {"label_smoothing": 0.0}),
        ("finetune_batch_256", 256, {}),
    ],
)
def test_one_thing_is_done_otherwise(measure: str, batch_size: int, options: dict[str, float]) -> None:
    model, asked = dense(), job(measure)
    data = data_for(model, asked)
    small, _ = compress(model, data.calibration_dataloader(), "exact", 0.4, seed=0, device="cpu")
    images = copy.copy(data)
    images.batch_size = batch_size
    tuned = finetune(small, images, epochs=1, lr=1e-2, seed=0, hardware=CPU, progress=False, **options)
    described = tuned.describe()
    assert described["batch_size"] == batch_size
    assert all(described[name] == value for name, value in options.items())
    expected = evaluate(tuned.model, data, hardware=CPU, progress=False)["top1"]
    assert run(measure, model, asked) == {"top1_tuned": pytest.approx(expected)}
