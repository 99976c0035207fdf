"""Files of a given size, by ranks, by bits, by both in turn and by both at once: none is larger than asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from experiments.measures import at_bytes
from experiments.tables.table4b import TABLE, WAYS
from lowrank_vit import quantize
from lowrank_vit.modules.counting import saved_bytes
from tests.experiments.support.untrained import dense, job_for, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("measure", WAYS)
def test_a_file_is_no_larger_than_asked_for(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    size = int(1.02 * at_bytes.stored(quantize(model, 8)[0]))
    monkeypatch.setattr(at_bytes, "IN_TURN", (8,))
    job = replace(job_for(measure), recipe="best", reduction=1 - size / saved_bytes(model, torch.float32))
    assert at_bytes.allowed(model, job) == size
    found = run(measure, model, job)
    assert 0.9 * size < found["stored_bytes"] <= size
    assert found["kl"] >= 0


def test_a_row_asks_for_its_size_of_the_real_model() -> None:
    model = timm.create_model(TABLE.runnable[0].model, pretrained=False)
    wanted = {
        row.id: at_bytes.allowed(model, replace(job_for("bytes_by_bits"), reduction=row.reduction))
        for row in TABLE.runnable
    }
    assert wanted["deit_t/at-once-1.5"] == 1.5 * 2**20
    assert len(wanted) == 4 * 6 - 2
