"""Table D's protocol on an untrained base: which images it sees, what it returns, and Figure D."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from experiments.jobs.revisions import made_by
from experiments.measures import customize
from experiments.measures.customize import CHOICE, CONCEPT, customized_and_measured, pixels
from experiments.report.customize_columns import CUSTOMIZE_FIELDS
from experiments.report.pictures import draw_figure
from experiments.runner.plan import Options, make_plan, open_images
from experiments.tables.catalogue import find
from experiments.tables.table_customize import METHODS
from lowrank_vit.customize.digits import Judge, digit_images
from lowrank_vit.models import load_model
from lowrank_vit.runtime.errors import InputError
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


@pytest.mark.usefixtures("untrained")
def test_nothing_trained_has_no_size_and_forgets_nothing(judge: Judge) -> None:
    numbers = measured(judge)
    assert "custom_count" not in numbers
    assert numbers["custom_old_change"] == 0
    assert numbers["custom_old_distance"] == numbers["custom_old_distance_before"]


@pytest.mark.usefixtures("untrained")
def test_a_base_below_its_bar_is_refused(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(customize, "BAR", 85.0)
    with pytest.raises(InputError, match=r"the base draws \d+ % of the old digits well, below 85 %"):
        measured(judge)


def test_pixels_are_bytes() -> None:
    assert pixels(torch.tensor([[[-1.0, 1.0], [0.0, 2.0]]])) == "00ff80ff"


def test_a_row_depends_on_its_own_method_alone() -> None:
    table, _ = find("table_customize")
    plan = make_plan(table, Options(), open_images("digits"))
    for item in plan:
        method = METHODS[item.row.id.rpartition("/")[2]][1].get("method")
        parts = made_by(item.jobs[0])["revisions"].keys()
        assert {part for part in parts if part.startswith("delta.")} == ({f"delta.{method}"} if method else set())
        assert "customize" in parts


@pytest.mark.usefixtures("untrained")
def test_the_figure_shows_what_was_drawn(judge: Judge) -> None:
    table, _ = find("figure_customize")
    results = {
        row.id: [{"job": {"seed": 0, "model": "digits_deit_small"}, "measured": measured(judge, **row.changes)}]
        for row in table.runnable[:2]
    }
    figure = draw_figure(table, results, f"{table.title} · digits stand-in, not ImageNet")
    shown = [panel.get_images()[0].get_array() for panel in figure.axes if panel.get_images()]
    assert len(shown) == 1 + 2 * 2
    first = bytes.fromhex(results["unet/none"][0]["measured"]["examples"][0])
    assert bytes(shown[0][:, :8].astype("uint8").flatten().tolist()) == first
