"""Output layers refitted where tokens merge: each is to be the mean of the dense tokens that were merged into it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import Branch, with_inputs
from lowrank_vit.modules.surgery import output_linear
from lowrank_vit.modules.token_block import TokenBlock
from lowrank_vit.runtime.tensors import Spill
from lowrank_vit.stages.correct.regression import Folds, Streams

Fit = Callable[[Branch, nn.Linear, Folds], float | None]


def refit_token_block(
    branches: Sequence[Branch],
    block: TokenBlock,
    streams: Streams,
    shares: Spill,
    weights: Sequence[Tensor],
    folds: int,
    fit: Fit,
) -> list[float | None]:
    """Refit the outputs of a block that merges tokens, or computes some alone; return the ridge of each branch.

    Minimised over W and b is ``sum_c w_c ||m_c - y_c - f_c - (h_c W + b)||^2`` and the ridge's term: m the mean of the dense
    stream over the tokens in c, y the smaller stream before the branch, f what it adds.
    ``branches``: the dense block's, ``weights``: of its positions, (T,), for each; those of merged tokens add up to ``w_c``.
    ``shares``: by batch, what part each dense token has in each of the smaller model's, (B, T', T); absent until a pair is
    merged. ``fit`` changes an output layer by what the folds hold. The streams and shares are replaced by those after it.
    """
    attention, mlp = branches
    ridges = []
    device = attention.output_layer.weight.device
    outputs = [output_linear(block.get_submodule(branch.output_name)) for branch in branches]
    sums = Folds(outputs[0], folds)
    for place in range(len(streams)):
        x, y = streams.at(place, device)
        x = x + attention.add(x)
        y, sizes = block.entered(y)
        (added, _), h = with_inputs(outputs[0], block.attend, y, sizes)
        share = _share(shares, place, x)[:, : added.shape[1]]
        sums.add(h, share @ x - y[:, : added.shape[1]] - added, _rows(share, sizes, weights[0]))
        streams.dense[place] = x.cpu()
    ridges.append(fit(attention, outputs[0], sums))
    sums = Folds(outputs[1], folds)
    for place in range(len(streams)):
        x, y = streams.at(place, device)
        y, sizes = block.entered(y)
        added, handed_on = block.attend(y, sizes)
        kept = added.shape[1]
        share = _share(shares, place, x)[:, :kept]
        y, sizes = handed_on(torch.cat([y[:, :kept] + added, share, sizes[:, :kept]], -1))
        y, share = y.split([x.shape[-1], share.shape[-1]], -1)
        shares[place] = share
        x = x + mlp.add(x)
        added, h = with_inputs(outputs[1], block.think, y)
        sums.add(h, share @ x - y - added, _rows(share, sizes, weights[1]))
        streams.put(place, x, torch.cat([y, sizes], -1))
    ridges.append(fit(mlp, outputs[1], sums))
    for place, kept_stream in enumerate(streams.small):
        y, sizes = kept_stream.to(device).split([attention.output_layer.out_features, 1], -1)
        y = y + block.think(y)
        streams.small[place] = y if block.config["last"] else torch.cat([y, sizes], -1)
    return ridges


def _share(shares: Spill, place: int, x: Tensor) -> Tensor:
    """Return the dense tokens' parts in the smaller model's tokens; each has its own until pairs are merged."""
    if place in shares:
        return shares[place].to(x)
    return torch.eye(x.shape[1]).to(x).expand(len(x), -1, -1)


def _rows(share: Tensor, sizes: Tensor, weights: Tensor) -> Tensor:
    """Return the weights of merged tokens, (B, T'): the sums over their members."""
    total: Tensor = share @ weights.to(share) * sizes[:, : share.shape[1], 0]
    return total
