"""Standard errors, and which rows have fewer seeds."""

from __future__ import annotations

from experiments.report.uncertainty import caveats, fewer_seeds, marked


def rows(*seeds: list[int] | None, images: int | None = None) -> list[dict[str, object]]:
    return [{"id": str(index), "method": "M", "seeds": own, "images": images} for index, own in enumerate(seeds)]


def test_rows_of_fewer_seeds_are_marked() -> None:
    some = rows([0, 1, 2], [0], None, [0, 2], [0, 1, 2])
    assert fewer_seeds(some) == {"1": 1, "3": 2}
    assert [row["method"] for row in marked(some)] == ["M", "M (n=1)", "M", "M (n=2)", "M"]
    assert some[1]["method"] == "M"
    assert caveats(some) == ["(n=1) and (n=2): of fewer seeds than the other rows, not to be ranked among their means."]
