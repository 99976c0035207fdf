"""How the inputs of a mixer's output layer would change if the scan were left out."""

from __future__ import annotations

from typing import ClassVar

from lowrank_vit.linalg.metric import gram_panels
from lowrank_vit.modules.scans import SS2D
from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Sums


@STATISTICS.register("scan_change")
class ScanChange:
    """Collect ``scan_change``, (D, D): the sum of ``e e^T``, e the change of the output layer's inputs without the scan.

    Collected at the mixer's first layer. ``scan_whole``, (D, D): the same of the inputs with the scan.
    """

    gradient: ClassVar[bool] = False

    def __call__(self, seen: Seen, sums: Sums) -> None:
        """Add a batch. Raises ``TypeError`` at a layer that is in no mixer."""
        mixer = seen.owner
        if not isinstance(mixer, SS2D):
            raise TypeError(f"{seen.site.name!r} is no layer of a mixer with a scan")
        u, gate = mixer.read(seen.output.detach())
        whole = mixer.written(mixer.scan(u)[0], gate)
        change = whole - mixer.written(mixer.whole_scan.skipped(u), gate)
        for name, value in (("scan_change", change), ("scan_whole", whole)):
            sums.add_second(name, gram_panels(value.flatten(0, -2).float()))
