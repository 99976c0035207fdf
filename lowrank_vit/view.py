"""A report as a person reads it in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show_report(report: Mapping[str, Any]) -> None:
    """Print sizes, then one line for each layer."""
    console = Console()
    params, macs = report["params"], report["macs"]
    console.print(
        f"[bold]{report['model']}[/] by recipe [bold]{report['recipe']}[/] ({report['protocol']}): "
        f"{params['dense']:,} to {params['compressed']:,} parameters ({-100 * params['reduction']:+.2f} %)"
        + ("" if macs is None else f", {macs['dense'] / 1e6:,.1f} to {macs['compressed'] / 1e6:,.1f} M MACs")
    )
    layers = report["layers"]
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True, min_width=max(len(layer["name"]) for layer in layers))
    for column in ("shape", "rank", "Z", "params", "error %", "unseen %"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in layers:
        unseen = layer["relative_error_held_out"]
        table.add_row(
            layer["name"],
            f"{layer['in_features']} x {layer['out_features']}",
            "dense" if layer["rank"] is None else str(layer["rank"]),
            "" if layer["z"] is None else f"{layer['z']['params']:,}",
            f"{layer['params']:,}",
            f"{100 * layer['relative_error']:.2f}",
            "" if unseen is None else f"{100 * unseen:.2f}",
        )
    console.print(table)
    console.print("  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report["seconds"].items()))
