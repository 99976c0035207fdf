"""Refit of the output layers of mixers whose scans were replaced: towards the dense ones' outputs on the same images."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of, first_inputs
from lowrank_vit.modules.scans import SS2D, SmallScan
from lowrank_vit.records.moments import as_float64
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.correct.output_refit import Streams
from lowrank_vit.stages.correct.regression import Regression

RIDGE = 1e-3  # of the mean second moment of the features


@torch.no_grad()
def refit_mixers(
    dense: nn.Module, small: nn.Module, replaced: Collection[str], batches: Iterable[Tensor], *, progress: bool = False
) -> None:
    """Minimise ``E||y - h W - f V - b||^2 + ridge s (||W||^2 + ||V||^2)``, scan by scan from first to last, in place.

    y: the dense mixer's output; h, f: what the smaller mixer's output layer is given, and the features of its scan, where
    everything before it is smaller already; s: the mean second moment of both. All tokens are rows. ``replaced``: names
    of scans. Both streams are on the disk.
    """
    steps, device = family_of(dense).steps(dense), next(dense.parameters()).device
    inputs = first_inputs(dense, next(iter(steps.values())), (batch.to(device) for batch in batches))
    with Streams() as streams:
        for place, x in enumerate(inputs):
            streams.put(place, x, x)
        for name in track(list(steps), "refit", shown=progress):
            old, new = steps[name], small.get_submodule(name)
            if f"{name}.op.scan" in replaced:
                _refit(old, new, (streams.at(place, device) for place in range(len(streams))))
            for place in range(len(streams)):
                x, y = streams.at(place, device)
                streams.put(place, old(x), new(y))


def _refit(old: Any, new: Any, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Refit the mixer of one block; ``pairs``: the inputs of the dense and of the smaller block."""
    mixer: SS2D = new.op
    scan, layer = mixer.scan, mixer.out_proj
    assert isinstance(scan, SmallScan)
    assert scan.bias is not None
    width, features = layer.in_features, 0 if scan.weight is None else scan.weight.shape[1]
    regression = Regression.empty(width + features, layer.out_features, layer.weight.device)
    for x, y in pairs:
        wanted = old.op(old.norm(x)).flatten(0, -2)
        u, gate = mixer.read(mixer.in_proj(new.norm(y)))
        given = mixer.written(scan(u)[0], gate)
        rows = torch.cat([given, scan.found(u)] if features else [given], -1).flatten(0, -2)
        regression.add(rows.float(), wanted.float(), rows.new_ones(len(rows), dtype=torch.float32))
    regression.gather()
    weight, shift = regression.solve(RIDGE)
    layer.weight.copy_(weight[:width].T)
    scan.bias.copy_(shift)
    if scan.weight is not None:
        scan.weight.copy_(weight[width:].T)


def channel_energy(module: SS2D, x: Tensor) -> float:
    """Return the share of energy that all channels of a scan's output have in common, ``E[(mean_d y)^2] / E[y^2]``.

    x: what the mixer is given, (B, H, W, n).
    """
    u, _ = module.read(module.in_proj(x))
    y = as_float64(module.scan(u)[0])
    return float(y.mean(-1).square().mean() / y.square().mean())
