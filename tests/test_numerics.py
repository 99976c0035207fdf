"""The golden numerics: what everything makes of a small model is what is recorded, or a revision was raised."""

from dataclasses import replace
from typing import Any

import pytest

from experiments.jobs.measure import MEASURES
from lowrank_vit import RECIPES
from lowrank_vit.compression.recipe import registries, slots
from lowrank_vit.compression.recipes import FULL_FORMS
from lowrank_vit.compression.revisions import BESIDE, ENGINE
from lowrank_vit.customize.deltas import DELTAS
from lowrank_vit.runtime.registry import revision_of
from lowrank_vit.stages.quantize import QUANTIZERS
from lowrank_vit.stages.tokens import TOKENS
from lowrank_vit.units.base import UNITS
from tests.numerics import Case, cases, check, difference, recorded, to_raise, unraised, verdict

CASES = cases()


@pytest.mark.slow
def test_numbers_are_those_recorded() -> None:
    """If this fails, a number has changed: raise the revision that is named, or mend the code."""
    assert CASES
    differing, _ = check(CASES)
    assert not differing, verdict(differing, CASES)


def test_everything_registered_has_a_case_and_a_revision() -> None:
    methods = {type(recipe.method(slot)) for case in CASES.values() if (recipe := case.recipe) for slot in slots()}
    parts = {part for case in CASES.values() for part in case.made_by()["revisions"]}
    registered = [(registry, name) for registry in registries().values() for name in registry.names()]
    assert len(registered) > 50
    assert [name for registry, name in registered if registry.get(name) not in methods] == []
    assert {*RECIPES, *FULL_FORMS, *(f"customised by {name}" for name in DELTAS.names())} <= CASES.keys()
    assert {f"quantizer.{name}" for name in QUANTIZERS.names()} | {f"tokens.{name}" for name in TOKENS.names()} <= parts
    assert ENGINE.keys() - {"time"} <= parts
    assert CASES.keys() == recorded()["cases"].keys()
    registered += [(registry, name) for registry in (*BESIDE.values(), DELTAS, UNITS) for name in registry.names()]
    assert all(revision_of(registry.get(name)) >= 1 for registry, name in registered)
    assert all(MEASURES.get(name).revision >= 1 for name in MEASURES.names())


MADE: dict[str, Any] = {
    "recipe": None,
    "revisions": {"plan": 1},
    "sizes": {"parameters": 10, "a": 4},
    "losses": {"a.relative_error": 0.5},
    "outputs": [1.0, -2.0],
    "weights": {"a.weight": 3.0},
}


DIFFERENCES: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"sizes": {"parameters": 10, "a": 5}}, "sizes of a"),
    ({"losses": {"a.relative_error": 0.502}}, "losses of a.relative_error"),
    ({"losses": {"a.relative_error": 0.5002}}, ""),
    ({"weights": {"b.weight": 3.0}}, "names of weights: a.weight, b.weight"),
    ({"weights": {"a.weight": -3.0}}, "weights of a.weight"),
    ({"outputs": [1.0, 2.0]}, "outputs by 2.0e+00 of the largest"),
]


def test_a_difference_is_named() -> None:
    for changed, said in DIFFERENCES:
        found = difference({**MADE, **changed}, MADE, 2e-3)
        assert found.startswith(said)
        assert bool(found) == bool(said)


def test_the_part_to_raise_is_in_most_that_changed_and_in_least_that_did_not() -> None:
    parts = {"a": ("plan", "cut"), "b": ("plan", "train"), "c": ("cut",), "d": ("train", "scans")}
    made = {name: Case(dict, each) for name, each in parts.items()}

    def raised(*changed: str) -> list[str]:
        return to_raise(
            {name: made[name] for name in changed}, {name: made[name] for name in made if name not in changed}
        )

    assert raised("a", "b") == ["plan"]
    assert raised("a", "c") == ["cut"]
    assert raised("d") == ["scans"]
    assert raised("c", "d") == ["scans", "cut"]


def test_a_change_is_recorded_once_its_revision_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"cases": {"a": MADE}}
    monkeypatch.setattr("tests.numerics.recorded", lambda: known)
    differing = {"a": "sizes of a"}
    assert unraised(differing, {"a": MADE}, False) == ["a"]
    assert unraised(differing, {"a": {**MADE, "revisions": {"plan": 2}}}, False) == []
    assert unraised(differing, {"a": {**MADE, "recipe": {"name": "other"}}}, False) == []


def test_a_changed_hyperparameter_is_noticed() -> None:
    name = "exact"
    recipe = RECIPES[name].but(bias_correction=False)
    case = replace(CASES[name], make=lambda: CASES["svd_llm"].make(), recipe=recipe)
    differing, made = check({name: case})
    assert differing.keys() == {name}
    assert unraised(differing, made, False) == []  # the recipe says that it is another one
