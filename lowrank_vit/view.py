"""A report as a person reads it in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lowrank_vit.report import some


def show_report(report: Mapping[str, Any], file_bytes: int, nested: Mapping[str, Any] | None = None) -> None:
    """Print sizes, then one line for each compressed layer.

    ``file_bytes``: of the model on disk; ``nested``: of a nested folder, what its config.json says of the other sizes.
    """
    console = Console()
    params, macs = report["params"], report.get("macs")
    recipe = (
        "dense"
        if report["recipe"] is None
        else f"by recipe [bold]{escape(report['recipe'])}[/] ({escape(report['protocol'])})"
    )
    console.print(
        f"[bold]{escape(report['model'])}[/] {recipe}: "
        f"{params['dense']:,} to {params['compressed']:,} parameters ({-100 * params['reduction']:+.2f} %)"
        + ("" if macs is None else f", {macs['dense'] / 1e6:,.1f} to {macs['compressed'] / 1e6:,.1f} M MACs")
    )
    console.print(f"{precision(report)}: {mebibytes(file_bytes)} on disk")
    if nested is not None:
        console.print(
            f"nested: `shrink` opens it at any reduction up to {nested['largest_reduction']:.4g}, "
            f"ranks by allocator {nested['allocator']['name']}: {mebibytes(nested['bytes'])} more on disk"
        )
    if report["layers"]:
        _show_layers(console, report["layers"])
        left = report.get("left_dense")
        if left is not None and left["layers"]:
            console.print(f"left dense: {escape(some(left['layers']))} ({left['params']:,} parameters)")
        overfit = report.get("overfit")
        if overfit is not None:
            console.print(
                f"error of the reduced layers: {100 * overfit['relative_error']:.2f} % seen, "
                f"{100 * overfit['relative_error_held_out']:.2f} % unseen ({overfit['ratio']:.2f} times)"
            )
        seconds = "  ".join(f"{escape(stage)} {seconds:.1f} s" for stage, seconds in report["seconds"].items())
        console.print(seconds)


def mebibytes(count: int) -> str:
    """A size in MiB."""
    return f"{count / 2**20:.2f} MiB"


def precision(report: Mapping[str, Any]) -> str:
    """What the weights are stored as."""
    entry = report.get("quantization")
    if entry is None:
        return "not quantised"
    if not entry["layers"]:
        return "float16"
    lost = 100 * entry["relative_weight_error"]
    return f"{entry['bits']} bits in {entry['layers']} layers, float16 elsewhere (weights differ by {lost:.2f} %)"


def _show_layers(console: Console, layers: Sequence[Mapping[str, Any]]) -> None:
    """The table; its errors were measured before quantisation."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True, min_width=max(len(layer["name"]) for layer in layers))
    for column in ("shape", "rank", "Z", "params", "error %", "unseen %"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in layers:
        unseen = layer["relative_error_held_out"]
        table.add_row(
            escape(layer["name"]),
            f"{layer['in_features']} x {layer['out_features']}",
            "dense" if layer["rank"] is None else str(layer["rank"]),
            "" if layer["z"] is None else f"{layer['z']['params']:,}",
            f"{layer['params']:,}",
            f"{100 * layer['relative_error']:.2f}",
            "" if unseen is None else f"{100 * unseen:.2f}",
        )
    console.print(table)
