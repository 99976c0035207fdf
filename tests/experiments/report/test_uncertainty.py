"""Standard errors, and which rows have fewer seeds."""

from __future__ import annotations

from experiments.report.uncertainty import caveats, fewer_seeds, images_of, marked, standard_error


def test_the_standard_error_by_hand() -> None:
    assert standard_error(50, 2500) == 1.0
    assert standard_error(100, 500) == 0.0


def rows(*seeds: list[int] | None, images: int | None = None) -> list[dict[str, object]]:
    return [{"id": str(index), "method": "M", "seeds": own, "images": images} for index, own in enumerate(seeds)]


def test_rows_of_fewer_seeds_are_marked() -> None:
    some = rows([0, 1, 2], [0], None, [0, 2], [0, 1, 2])
    assert fewer_seeds(some) == {"1": 1, "3": 2}
    assert [row["method"] for row in marked(some)] == ["M", "M (n=1)", "M", "M (n=2)", "M"]
    assert some[1]["method"] == "M"
    assert caveats(some) == ["(n=1) and (n=2): of fewer seeds than the other rows, not to be ranked among their means."]


def test_nothing_is_marked_where_all_have_one_seed() -> None:
    """As on ImageNet: none of them is a mean."""
    some = rows([0], [0], None)
    assert marked(some) == some
    assert caveats(some) == []


def test_the_images_are_said_once() -> None:
    said = images_of(rows([0], [0], images=500))
    assert said == (
        "top-1 of 500 images: one is 0.2 points, the binomial standard error 0.97 at 95 %, 2.2 at 50 %"
    )  # sqrt(0.95 * 0.05 / 500), sqrt(0.25 / 500)
    old = [{name: value for name, value in row.items() if name != "images"} for row in rows([0])]
    assert images_of(old) == ""  # published before the number was kept
