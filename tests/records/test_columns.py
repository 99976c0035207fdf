"""One order of inner parts and inputs: what ranks keep and lose, by hand."""

import torch

from lowrank_vit.records.factors import Columns

INNER, INPUTS = torch.tensor([0.2, 0.9, 0.1]), torch.tensor([0.3, 0.05])


def test_the_best_of_either_kind_come_first_and_then_one_order() -> None:
    """The order is inner 1, input 0; inner 0, inner 2, input 1: ranks 1 to 4 keep 2 to 5 of it."""
    columns = Columns.by_score(INNER, INPUTS, torch.zeros(3), torch.zeros(2))
    assert [tuple(each.tolist() for each in columns.kept(rank)) for rank in (1, 2, 3, 4)] == [
        ([1], [0]),
        ([0, 1], [0]),
        ([0, 1, 2], [0]),
        ([0, 1, 2], [0, 1]),
    ]
    assert [each.tolist() for each in columns.kept(None)] == [[0, 1, 2], [0, 1]]
    torch.testing.assert_close(columns.units.loss[1:], torch.tensor([0.2, 0.1, 0.05, 0.0]))
    inner, inputs = columns.counts()
    assert (inner[1:].tolist(), inputs[1:].tolist()) == ([1, 2, 3, 3], [1, 1, 1, 2])
