"""Figures: what every layer of a report keeps and loses, the steps of Algorithm 1, and the Pareto plot of a sweep."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowrank_vit.records.looks import LOOKS, Look
from lowrank_vit.records.report import LayerEntry, Report
from lowrank_vit.runtime.files import replacing

PLAIN = Look("o", (), "black")
GREYS = ("#000000", "#7f7f7f", "#b3b3b3", "#4d4d4d")
HATCHES = ("", "//", "..", "xx")
AXES = {"params": "parameters", "macs": "multiply-accumulates", "bytes": "bytes on disk", "latency": "time of a batch"}


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def dense_parameters(layer: LayerEntry) -> int:
    """Count the dense parameters: of a linear layer's weight, or of a whole module as reported."""
    whole: int | None = layer["details"].get("dense_params")
    return whole or layer["in_features"] * layer["out_features"]


def _plot_layers(kept: Axes, lost: Axes, layers: list[LayerEntry]) -> None:
    """Plot the share of parameters kept and the relative error, layer by layer, one shade for each kind."""
    kinds = list(dict.fromkeys(_kind(layer["name"]) for layer in layers))
    for index, kind in enumerate(kinds):
        chosen = [(place, layer) for place, layer in enumerate(layers) if _kind(layer["name"]) == kind]
        places = [place for place, _ in chosen]
        shares = [100 * layer["params"] / dense_parameters(layer) for _, layer in chosen]
        style: dict[str, Any] = {
            "color": GREYS[index % 4],
            "hatch": HATCHES[index % 4],
            "edgecolor": "white",
            "label": kind,
        }
        kept.bar(places, shares, **style)
        lost.bar(places, [100 * layer["relative_error"] for _, layer in chosen], **style)
    kept.set_ylabel("parameters kept (%)")
    kept.margins(y=0.25)
    kept.legend(ncols=len(kinds), fontsize="small")
    lost.set_ylabel("relative error of the output (%)")
    lost.set_xlabel("layer, first to last")


def _plot_trajectory(axes: Axes, trajectory: list[Mapping[str, Any]], ranks: Mapping[str, int]) -> None:
    """Plot every layer's rank over the steps of Algorithm 1, as a share of its full rank."""
    kinds = list(dict.fromkeys(_kind(name) for name in ranks))
    styles = dict(zip(kinds, ("-", "--", ":", "-."), strict=False))
    for name, full in ranks.items():
        steps = [(0, 100.0)] + [(s["step"], 100 * s["rank"] / full) for s in trajectory if s["layer"] == name]
        label = _kind(name) if name == next(n for n in ranks if _kind(n) == _kind(name)) else None
        xs, ys = zip(*[*steps, (trajectory[-1]["step"], steps[-1][1])], strict=True)
        style = styles.get(_kind(name), "-")
        axes.step(xs, ys, where="post", linestyle=style, color="black", alpha=0.5, linewidth=0.8, label=label)
    axes.set_xlabel("step of Algorithm 1")
    axes.set_ylabel("rank (% of full)")
    axes.legend(fontsize="small")


def plot_report(report: Report, path: Path) -> None:
    """Draw a report's layers, and the allocator's trajectory where it recorded one, to ``path`` (PNG, PDF, SVG).

    Raises ``InputError`` where ``path`` cannot be written.
    """
    trajectory, layers = report["trajectory"], report["layers"]
    rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure(figsize=(9, 8 if trajectory else 5.5), layout="constrained")
    axes = figure.subplots(3 if trajectory else 2, 1)
    size = f"{100 * report['params']['reduction']:.1f} % of the parameters removed"
    figure.suptitle(f"{report['model']}, recipe {report['recipe']}: {size}")
    _plot_layers(axes[0], axes[1], layers)
    if trajectory:
        ranks = {layer["name"]: min(layer["in_features"], layer["out_features"]) for layer in layers}
        _plot_trajectory(axes[2], trajectory, ranks)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".").lower() or "png", dpi=120)


def plot_sweep(result: Mapping[str, Any], path: Path) -> None:
    """Draw top-1, or the divergence where there are no labels, against each cost as a share of the dense model's.

    Each recipe is a curve, with the look of tables where there are several.

    Raises ``InputError`` where ``path`` cannot be written.
    """
    rows = result["rows"]
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    costs = list(rows[0]["costs"])
    labelled = all(row["top1"] is not None for row in rows)
    values = [row["top1"] if labelled else row["kl"] for row in rows]
    rcParams["svg.fonttype"] = "none"  # text stays text
    figure = Figure(figsize=(3.2 * len(costs), 3.4), layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, costs, strict=True):
        for recipe in recipes:
            chosen = [
                (row["costs"][cost], value) for row, value in zip(rows, values, strict=True) if row["recipe"] == recipe
            ]
            points = sorted((100 * compressed / dense, value) for (dense, compressed), value in chosen)
            look = LOOKS.get(recipe) if len(recipes) > 1 and recipe in LOOKS.names() else PLAIN
            style = {"linestyle": (0, look.dashes) if look.dashes else "-", "marker": look.marker, "color": look.colour}
            axes.plot(*zip(*points, strict=True), markersize=4, linewidth=1, label=recipe, **style)
        axes.axhline(rows[0]["top1_dense"] if labelled else 0.0, color="#7f7f7f", linestyle="--", linewidth=0.8)
        axes.set_xlabel(f"{AXES.get(cost, cost)} (% of dense)")
    if len(recipes) > 1:
        panels[0].legend(fontsize="small")
    panels[0].set_ylabel("top-1 (%)" if labelled else "KL from the dense model (nats)")
    figure.suptitle(
        f"{result['model']}, recipe {result['recipe']}; dashed: dense; {rows[0]['n']} images", fontsize="medium"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".").lower() or "png", dpi=120)
