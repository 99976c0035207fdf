"""How work is divided: the most expensive first, by hand."""

from lowrank_vit.runtime.processes import split


def test_the_most_expensive_is_dealt_out_first() -> None:
    """Of 1, 2, 3, 4, 6 for two: 6, then 4 + 3, then 2 to the first (8), and 1 to the second (8)."""
    costs = {"one": 1, "two": 2, "three": 3, "four": 4, "six": 6}
    assert split(costs, 2) == [["six", "two"], ["four", "three", "one"]]
