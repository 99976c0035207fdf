"""Standard errors, which rows have fewer seeds, one look for each method, and Table 1 in words."""

from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from experiments.report.ablation import findings
from experiments.report.styles import COLOURS, SIZE, STYLES, known_style, series_of, styles_of
from experiments.report.uncertainty import (
    caveats,
    fewer_seeds,
    marked,
    mcnemar,
    neighbours,
    paired,
    said_of_pairs,
    with_image_errors,
)
from experiments.tables.catalogue import tables
from lowrank_vit.stages.evaluate.accuracy import pack_hits


def rows(*seeds: list[int] | None, images: int | None = None) -> list[dict[str, object]]:
    return [{"id": str(index), "method": "M", "seeds": own, "images": images} for index, own in enumerate(seeds)]


def test_rows_of_fewer_seeds_are_marked() -> None:
    some = rows([0, 1, 2], [0], None, [0, 2], [0, 1, 2])
    assert fewer_seeds(some) == {"1": 1, "3": 2}
    assert [row["method"] for row in marked(some)] == ["M", "M (n=1)", "M", "M (n=2)", "M"]
    assert some[1]["method"] == "M"
    assert caveats(some) == ["(n=1) and (n=2): of fewer seeds than the other rows, not to be ranked among their means."]


def test_mcnemars_test_is_the_exact_binomial_one() -> None:
    assert mcnemar(0, 0) == 1
    for one, other in ((1, 6), (12, 3), (40, 41), (0, 9)):
        assert mcnemar(one, other) == pytest.approx(binomtest(one, one + other, 0.5).pvalue)


def answered(name: str, hits: list[bool], top1: float, **fields: object) -> dict[str, object]:
    """A row of DeiT that has kept its answers."""
    known = {"architecture": "DeiT", "cost": "parameters", "reduction": 0.5, "protocol": "free"}
    return {
        "id": name,
        "method": name,
        **known,
        "top1": top1,
        "images": len(hits),
        "hits": {"0": pack_hits(torch.tensor(hits))},
        **fields,
    }


def test_two_rows_are_compared_image_by_image() -> None:
    one, other = (
        [True, True, False, True, False, False, True, True, True],
        [True, False, True, True, False, False, False, True, False],
    )
    assert paired(answered("a", one, 66.7), answered("b", other, 44.4)) == (3, 1)
    assert paired(answered("a", one, 66.7), answered("b", [*other, True], 44.4)) is None
    assert paired(answered("a", one, 66.7), answered("b", other, 44.4) | {"hits": {}}) is None


def test_neighbours_are_those_of_one_size_by_accuracy() -> None:
    hits = [True, False, True]
    some = [answered("low", hits, 10), answered("high", hits, 30), answered("middle", hits, 20)]
    some += [answered("elsewhere", hits, 25, reduction=0.25), answered("unknown", hits, 15) | {"hits": {}}]
    assert [(better["id"], worse["id"]) for better, worse, *_ in neighbours(some)] == [("high", "middle")]
    assert "high and middle, -50 %, 0 : 0, p = 1" in said_of_pairs(some)
    clear = [answered("best", [True] * 20, 100), answered("worst", [False] * 20, 0)]
    assert "answers are kept differ by McNemar's exact test, p <= 0.05" in said_of_pairs(clear)
    assert said_of_pairs(some[3:]) == ""


def test_of_real_images_the_error_stands_in_place_of_the_spread() -> None:
    row = {"top1": 80.0, "top1_std": 0.1, "top1_dense": None, "stored_top1": None, "images": None}
    row |= {"job": {"images": "1000+1000", "limit": None}}
    assert with_image_errors(row)["top1_std"] == pytest.approx(1.2649, abs=1e-4)
    assert with_image_errors(row | {"job": {"images": "1000+1000", "limit": 100}})["top1_std"] == pytest.approx(4)
    assert "top1_dense_std" not in with_image_errors(row)
    assert with_image_errors(row | {"job": None})["top1_std"] == 0.1


def test_no_two_styles_are_alike() -> None:
    assert len({(style.marker, style.colour) for style in STYLES.values()}) == len(STYLES)
    assert {style.colour for style in STYLES.values()} <= COLOURS.keys()


def test_every_method_of_a_table_has_its_own_style() -> None:
    """A new method registers its look, so that it is the same beside whatever it is drawn."""
    drawn = [table for table in tables().values() if table.pictures and table.drawing is None]
    panels: dict[tuple[str, str], dict[str, None]] = {}
    for table in drawn:
        for row in table.runnable:
            if row.protocol != "dense":
                series = series_of({"method": row.method, "bits": row.bits})
                panels.setdefault((table.name, row.architecture), {})[series] = None
    assert {name for name, _ in panels} == {table.name for table in drawn}
    for names in panels.values():
        assert [name for name in names if known_style(name) is None] == []
        assert len(set(styles_of(list(names)).values())) == len({name.removesuffix(SIZE) for name in names})


def ablated(
    base: str, kind: str | None, solver: str | None, budget: float | None, error: float, top1: float
) -> dict[str, Any]:
    own = {"architecture": "M", "model": "m", "status": "done", "base": base, "z": kind, "solver": solver}
    return own | {"seeds": [0, 1], "budget": budget, "relative_error_held_out": error, "top1": top1}


@pytest.fixture
def content() -> dict[str, Any]:
    rows = []
    for base, none in (("representative", 0.2), ("whitened_normalised", 0.05)):
        rows.append(ablated(base, None, None, None, none, 50.0))
        for budget in (0.01, 0.1):
            for solver in ("closed_form", "moments", "minibatch"):
                rows.append(ablated(base, "low_rank", solver, budget, 0.05 if budget == 0.1 else 0.06, 70.0))
                rows.append(ablated(base, "diagonal", solver, budget, 0.3, 40.0))
    rows.append({**ablated("representative", "low_rank", "minibatch", 0.05, 0.19, 51.0), "optimizer": "sgd"})
    rows.append({**rows[0], "status": "skipped", "z": "structured_sparse"})
    return {"title": "Table 1: made up", "rows": rows}


def test_findings_compare_with_rank(content: dict[str, Any]) -> None:
    said = findings(content)
    assert len(said) == 4  # two bases, two kinds; what was not run says nothing
    assert said[0] == (
        "M, SVD on the mean image: low-rank Z in closed form, at best at 10 %: error on unseen images 0.0500 against 0.2000 "
        "with rank instead (0.25 times), top-1 70.0 against 50.0: Z helps more"
    )
    assert said[1].endswith("rank helps more")
    assert said[2].endswith("no difference in error")
