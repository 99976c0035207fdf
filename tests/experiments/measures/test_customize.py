"""Table D's protocol on an untrained base: which images it sees, what it returns, and Figure D."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from experiments.measures import customize
from experiments.measures.customize import CHOICE, CONCEPT, customized_and_measured, pixels
from experiments.report.customize_columns import CUSTOMIZE_FIELDS
from lowrank_vit.customize.digits import digit_images
from lowrank_vit.customize.measure import Judge
from lowrank_vit.models import load_model
from tests.support.diffusion import small


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(load_model("digits_deit_small", None))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that draws nothing yet, few steps and few images."""
    monkeypatch.setattr(customize, "digits_model", lambda: small(torch.float32))
    for name, value in {"BAR": 0.0, "STEPS": 2, "DRAWN": 10, "DRAWN_OF_OLD": 2}.items():
        monkeypatch.setattr(customize, name, value)


def measured(judge: Judge, seed: int = 0, **changes: Any) -> dict[str, Any]:
    return customized_and_measured(changes, seed, judge, lambda said: None)


def real(digit: int, split: Any) -> set[str]:
    return {pixels(image) for image in digit_images([digit], split)[0]}


@pytest.mark.usefixtures("untrained")
def test_a_method_is_measured(judge: Judge) -> None:
    numbers = measured(judge, method="comcat", rank=1)
    assert {name for name in numbers if name.startswith("custom_")} == {*CUSTOMIZE_FIELDS, "custom_old_distance_before"}
    assert len(set(numbers["examples"])) == 8
    assert set(numbers["examples"]) <= real(CONCEPT, "train")
    assert numbers["custom_bytes"] > 4 * numbers["custom_count"] > 4000
    assert set(measured(judge, 1, method="lora", digit=CHOICE)["examples"]) <= real(CHOICE, "train")
