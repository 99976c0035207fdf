"""What settings are chosen by: the divergence on held-out training images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from experiments.tables.table_tries import SETTINGS, TABLE
from lowrank_vit import compress, get_recipe
from lowrank_vit.stages.evaluate.comparison import agreements
from tests.experiments.support.untrained import data_for, dense, job_for, run


def test_agreement_by_hand() -> None:
    dense = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64)
    small = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    assert 100 * agreements(dense.log(), small.log()) / 2 == 50.0


def test_every_setting_is_one_of_its_recipe() -> None:
    tried = [row for row in TABLE.runnable if row.changes]
    assert len(tried) == 2 * sum(len(values) for settings in SETTINGS.values() for values in settings.values())
    for row in tried:
        recipe = get_recipe(row.recipe)
        assert recipe.but(**row.changes).record() != recipe.record(), row.id


def test_it_is_measured_on_the_held_out_training_images() -> None:
    model, job = dense(), replace(job_for("divergence"), recipe="exact", reduction=0.4)
    data = data_for(model, job)
    found = run("divergence", model, job)
    small, _ = compress(model, data.calibration_dataloader(), "exact", 0.4, seed=job.seed, device="cpu")
    unseen = data.held_out_tensor()
    with torch.no_grad():
        answers = [each(unseen).double().log_softmax(-1) for each in (model, small.eval())]
    expected = torch.nn.functional.kl_div(answers[1], answers[0], reduction="batchmean", log_target=True)
    assert found["images"] == job.held_out_samples == len(unseen)
    assert found["kl"] == pytest.approx(expected.item(), abs=1e-5)
    assert set(data.held_out_indices).isdisjoint(data.calibration_indices)
