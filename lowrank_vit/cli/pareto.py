"""The Pareto plot of a sweep: what sizes keep, against each of their costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure

from lowrank_vit.runtime.files import replacing

AXES = {"params": "parameters", "macs": "multiply-accumulates", "bytes": "bytes on disk", "latency": "time of a batch"}


def plot_sweep(result: Mapping[str, Any], path: Path) -> None:
    """Draw top-1, or the divergence where there are no labels, against each cost as a share of the dense model's.

    Raises ``InputError`` where ``path`` cannot be written.
    """
    rows = result["rows"]
    costs = list(rows[0]["costs"])
    labelled = all(row["top1"] is not None for row in rows)
    values = [row["top1"] if labelled else row["kl"] for row in rows]
    rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure(figsize=(3.2 * len(costs), 3.4), layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, costs, strict=True):
        shares = [100 * compressed / dense for dense, compressed in (row["costs"][cost] for row in rows)]
        points = sorted(zip(shares, values, strict=True))
        axes.plot(*zip(*points, strict=True), color="black", marker="o", markersize=4, linewidth=1)
        axes.axhline(rows[0]["top1_dense"] if labelled else 0.0, color="#7f7f7f", linestyle="--", linewidth=0.8)
        axes.set_xlabel(f"{AXES.get(cost, cost)} (% of dense)")
    panels[0].set_ylabel("top-1 (%)" if labelled else "KL from the dense model (nats)")
    figure.suptitle(
        f"{result['model']}, recipe {result['recipe']}; dashed: dense; {rows[0]['n']} images", fontsize="medium"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".").lower() or "png", dpi=120)
