"""A table that stands where a parameter was."""

import torch
from torch import Tensor, nn

from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.embeddings import Positions
from lowrank_vit.modules.surgery import exchanged, part, replace_module


class Adding(nn.Module):
    """A model with a position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_embed


def product() -> tuple[Positions, Tensor]:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (5, 4))
    return Positions.product(u, v, u), u @ v.T


def test_it_is_added_as_the_product() -> None:
    model, x = Adding(), torch.randn(3, 5, 4).double()
    before = model(x)
    positions, table = product()
    replace_module(model, "pos_embed", positions)
    torch.testing.assert_close(model(x), x + table)
    torch.testing.assert_close(torch.cat([positions, x[:1]]), torch.cat([table[None], x[:1]]))  # type: ignore[list-item]
    assert parameter_count(model) == 5 * 2 + 2 * 4
    assert positions.shape == (1, 5, 4)
    with exchanged(model, "pos_embed", Positions.of(before[:1] - x[:1])):
        torch.testing.assert_close(model(x), before)
    assert part(model, "pos_embed") is positions
    torch.testing.assert_close(positions.rows.T @ positions.rows, positions.columns @ positions.columns.T)  # balanced
