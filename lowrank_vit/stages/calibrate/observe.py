"""The running sums of one layer, which calibration's hooks update as images stream through the model.

Products are computed in float32 batch by batch and added up in float64, so memory does not depend on the number of images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from lowrank_vit.linalg.metric import assembled
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.calibrate.statistics import STATISTICS, Batch, Seen, Statistic

SIDES = ("second", "normalised_second")  # of whichever side is smaller


def needs_gradient(names: Iterable[str]) -> bool:
    """Tell whether one of the statistics needs the backward pass."""
    return any(name not in SIDES and STATISTICS.get(name).gradient for name in names)


def resolve(needs: Iterable[str], site: Site) -> frozenset[str]:
    """Return the statistics to collect at a site: ``"second"`` becomes the smaller side's, unless the input's is needed.

    ``"head_fisher"`` is left out at a site without heads. Raises ``ValueError`` for unknown ones.
    """
    wanted = set(needs)
    unknown = wanted - {*STATISTICS.names(), *SIDES}
    if unknown:
        raise ValueError(f"unknown statistics {sorted(unknown)}")
    for side in SIDES:
        prefix = side.removesuffix("second")
        if side in wanted:
            wanted.remove(side)
            if f"{prefix}input_second" not in wanted:
                wanted.add(f"{prefix}{site.side}_second")
    if not site.heads:
        wanted.discard("head_fisher")
    return frozenset(wanted)


@dataclass
class Accumulator:
    """Keep the running sums of one layer."""

    site: Site
    bias: Tensor | float  # added by the layer
    later_bias: Tensor | float  # added by the module around it
    wanted: frozenset[str]
    batch: Batch
    weight: Tensor | None = None  # of the layer, (d, n), for statistics of gradients
    owner: nn.Module | None = None  # the module around the layer
    images: int = 0
    tokens: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, list[Tensor]] = field(default_factory=dict)  # second moments, by panels

    @cached_property
    def statistics(self) -> list[Statistic]:
        """Return the statistics to collect, in the order of their names."""
        return [STATISTICS.get(name) for name in sorted(self.wanted)]

    @property
    def needs_gradient(self) -> bool:
        """Tell whether any statistic needs the backward pass."""
        return any(statistic.gradient for statistic in self.statistics)

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum, in float64."""
        if name in self.sums:
            self.sums[name] += value
        else:
            self.sums[name] = value.to(torch.float64, copy=True)  # layers that share an input share the tensor

    def add_second(self, name: str, panels: Sequence[Tensor]) -> None:
        """Add the panels of a second moment, in float64."""
        if name not in self.seconds:
            self.seconds[name] = [panel.to(torch.float64, copy=True) for panel in panels]
            return
        for total, panel in zip(self.seconds[name], panels, strict=True):
            total += panel

    def see_input(self, x: Tensor, output: Tensor) -> None:
        """Add a batch's x: (..., n) and output: (..., d) of the layer; windows of one image are adjacent.

        Raises ``InputError`` for rows that do not belong to the batch's images, such as coordinates.
        """
        seen = Seen(self.site, self.batch, x, output, self.bias, self.later_bias, owner=self.owner)
        if len(seen.rows) % self.batch.images:
            raise InputError(
                f"layer {self.site.name!r} is given {len(seen.rows)} rows for {self.batch.images} images, so it does not "
                "look at images one by one: leave it out by `sites=`"
            )
        self.images, self.tokens = self.images + self.batch.images, self.tokens + len(seen.rows)
        self.add("input_sum", seen.shared("sum", lambda: seen.rows.sum(0)))
        for statistic in self.statistics:
            if not statistic.gradient:
                statistic.add(seen, self)

    def see_gradient(self, x: Tensor, output: Tensor, gradient: Tensor) -> None:
        """Add a batch's gradient: (..., d), of the summed loss with respect to the layer's output."""
        seen = Seen(self.site, self.batch, x, output, self.bias, self.later_bias, gradient, self.weight, self.owner)
        for statistic in self.statistics:
            if statistic.gradient:
                statistic.add(seen, self)

    def moments(self) -> Moments:
        seconds = {name: assembled(panels) for name, panels in self.seconds.items()}
        return Moments(self.images, self.tokens, self.sums | seconds)
