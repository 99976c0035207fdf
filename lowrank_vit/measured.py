"""Measured losses, by which predicted ones are corrected before the budget is spent.

The Fisher information predicts the increase of the loss to second order. Where much is taken away, and above all for the
logits of attention, that can be wrong by a factor of ten, and each kind of part has errors of its own. So every part is
reduced alone, the rest of the model stays dense, and the divergence from the dense model, which needs no labels, says
what it really costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_vit.parallel import gathered, rank_and_world
from lowrank_vit.records import ErrorCurve
from lowrank_vit.sites import replace_module
from lowrank_vit.streams import first_inputs, steps_of

IMAGES = 96  # calibration images; with few the allocator spends on what is cheap by chance
TRUST = 0.5  # in what so few images say: the geometric mean of predicted and measured, see README
LEAST = 1e-12  # nats: a smaller prediction is none


class Replay:
    """The streams of some images through a dense model, from which it can be finished with one module exchanged.

    ``images``: the first so many of the batches, (B, C, H, W), are looked at, or all if there are fewer; of several
    processes, each has every world-th of them.
    Raises ``InputError`` for a model whose blocks are of another kind.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Tensor], images: int) -> None:
        self._model: Any = model
        self._steps = steps_of(model)
        device, first = next(model.parameters()).device, next(iter(self._steps.values()))
        with torch.no_grad():
            own = len(range(rank_and_world()[0], images, rank_and_world()[1]))
            few = (batch.to(device) for batch in _first(batches, own))
            x = torch.cat(list(first_inputs(model, first, few)))
            self._inputs = {}
            for name, step in self._steps.items():
                self._inputs[name], x = x, step(x)
            self._dense = self._finish(x)

    @torch.no_grad()
    def divergence(self, name: str, module: nn.Module) -> float:
        """The mean of ``KL(dense || exchanged)`` over the images, in nats, ``module`` in place of the one called ``name``."""
        names = list(self._steps)
        start = next(index for index, step in enumerate(names) if name.startswith(f"{step}."))
        with _exchanged(self._model, name, module):
            x = self._inputs[names[start]]
            for step in names[start:]:
                x = self._steps[step](x)
            log_q = self._finish(x)
        log_p = self._dense
        found = gathered((float((log_p.exp() * (log_p - log_q)).sum()), len(x)))
        return sum(total for total, _ in found) / sum(count for _, count in found)

    def _finish(self, x: Tensor) -> Tensor:
        """Log-probabilities, (B, classes), float64, of the stream after the last step."""
        logits: Tensor = self._model.forward_head(self._model.norm(x))
        return logits.double().log_softmax(-1)


def _first(batches: Iterable[Tensor], images: int) -> Iterator[Tensor]:
    for batch in batches:
        yield batch[:images]
        images -= len(batch)
        if images <= 0:
            return


@contextmanager
def _exchanged(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Put a module in the place of another for a while."""
    own = model.get_submodule(name)
    replace_module(model, name, module)
    try:
        yield
    finally:
        replace_module(model, name, own)


def corrected(curve: ErrorCurve, points: Sequence[tuple[int, float]], trust: float = TRUST) -> ErrorCurve:
    """The curve with its losses scaled towards the measured ones; ``points``: (count, loss).

    The factor is measured / predicted to the power of ``trust``: with 1 the measured losses are met, with 0 nothing is
    changed. Its logarithm is interpolated linearly between the counts and constant beyond them. The result never rises
    with the count, as what is kept in addition cannot do harm.
    """
    ratios = {
        count: max(loss, LEAST) / float(curve.errors[count]) for count, loss in points if curve.errors[count] > LEAST
    }
    if not ratios:
        return curve
    counts = sorted(ratios)
    factors = np.exp(np.interp(range(len(curve.errors)), counts, trust * np.log([ratios[count] for count in counts])))
    errors = curve.errors * torch.from_numpy(factors).to(curve.errors)
    return replace(curve, errors=errors.flip(0).cummax(0).values.flip(0))
