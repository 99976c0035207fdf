"""A report as text for the terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lowrank_vit.records.costs import FLOAT32
from lowrank_vit.records.report import BudgetEntry, LayerEntry, Report, some
from lowrank_vit.records.sites import ROW, WORDS
from lowrank_vit.runtime.errors import amount
from lowrank_vit.runtime.progress import make_console

AMOUNTS: dict[str, Callable[[int], str]] = {  # of costs, in words
    "parameters": "{:,} parameters".format,
    "macs": lambda count: f"{count / 1e6:,.1f} M MACs",
    "bytes": lambda count: mebibytes(count),
    "latency": lambda count: f"{count / 1e6:.3g} ms",
}
MEASURED = {"agreement": "agreement %", "top1": "top-1 %", "top1_dense": "dense %"}  # of a trial


def show_report(report: Report, file_bytes: int, nested: Mapping[str, Any] | None = None) -> None:
    """Print sizes, then one line for each compressed layer.

    ``file_bytes``: the size of the model on disk; ``nested``: what a nested folder's config.json says of the other sizes.
    """
    console = make_console()
    params, macs = report["params"], report.get("macs")
    recipe = (
        "dense"
        if report["recipe"] is None
        else f"by recipe [bold]{escape(report['recipe'])}[/] ({escape(report['protocol'])})"
    )
    console.print(
        f"[bold]{escape(report['model'])}[/] {recipe}: "
        f"{params['dense']:,} to {params['compressed']:,} parameters ({-100 * params['reduction']:+.2f} %)"
        + ("" if macs is None else f", {macs['dense'] / 1e6:,.1f} to {(macs['compressed'] or 0) / 1e6:,.1f} M MACs")
    )
    console.print(f"{precision(report)}: {mebibytes(file_bytes)} on disk")
    if "budget" in report:
        for entry in (report["budget"], *report["budget"].get("also", ())):
            console.print(escape(budget_line(entry)))
    if nested is not None:
        console.print(
            f"nested: `shrink` opens it at any reduction up to {nested['largest_reduction']:.4g}, "
            f"ranks by allocator {nested['allocator']['name']}: {mebibytes(nested['bytes'])} more on disk"
        )
    if report["layers"]:
        _show_layers(console, report["layers"])
        _show_notes(console, report)
        seconds = "  ".join(f"{escape(stage)} {seconds:.1f} s" for stage, seconds in report["seconds"].items())
        console.print(seconds)


def budget_line(entry: BudgetEntry) -> str:
    """Say what was asked for, and what came of it."""
    words = AMOUNTS.get(entry["cost"], "{:,.0f}".format)
    limit, counted, dense = (words(entry[name]) for name in ("limit", "counted", "dense"))
    line = f"{entry['asked']}: {counted}, allowed {limit}, dense {dense}"
    if not entry["where"]:
        return line
    where = "{device}, {dtype}, {mode}, batch {batch}, ".format(**entry["where"])
    where += amount(entry["where"]["threads"], "thread")
    return f"{line}, predicted {words(entry['predicted'])} ({where})"


def _show_notes(console: Console, report: Report) -> None:
    """Print what stayed dense, what fell back, and how the errors on unseen images compare."""
    left = report.get("left_dense")
    if left is not None and left["layers"]:
        console.print(f"left dense: {escape(some(left['layers']))} ({left['params']:,} parameters)")
    logits = {} if left is None else left.get("logits", {})
    if logits:
        reasons = " or ".join(dict.fromkeys(logits.values()))
        console.print(f"left dense: queries and keys of {escape(some(logits))}, as they are {escape(reasons)}")
    fallback = report.get("fallback")
    if fallback is not None:
        left_out = f"; left out: {', '.join(fallback['left_out'])}" if fallback["left_out"] else ""
        singles = f"{len(fallback['layers'])} single layers" + left_out
        console.print(f"recipe {escape(fallback['asked'])} fell back ({singles}): {escape(fallback['reason'])}")
    overfit = report.get("overfit")
    if overfit is not None:
        console.print(
            f"relative error of the layers' outputs: {100 * overfit['relative_error']:.2f} % on calibration images, "
            f"{100 * overfit['relative_error_held_out']:.2f} % on unseen ones ({overfit['ratio']:.2f} times; if it is far "
            "above 1, calibrate on more images)"
        )


def comparison_line(measured: Mapping[str, Any], images: str) -> str:
    """Say how a compressed model compares with the dense one on some images."""
    if "feature_error" in measured:
        return f"on {measured['n']} {images}: {feature_line(measured)}"
    line = f"on {measured['n']} {images}: the same class as the dense model for {measured['agreement']:.1f} %, "
    line += f"KL {measured['kl']:.4f} nats"
    if measured["top1"] is None:
        return line
    return f"{line}; top-1 {measured['top1']:.1f} %, dense {measured['top1_dense']:.1f} %"


def feature_line(measured: Mapping[str, Any]) -> str:
    """Say how far features are from the dense model's."""
    return f"features differ from the dense model's by {100 * measured['feature_error']:.2f} % of their variance"


def size_line(report: Report, file_bytes: int) -> str:
    """Say how much smaller the file is, and how much less is computed."""
    macs, dense = report.get("macs"), FLOAT32 * report["params"]["dense"]
    line = f"size {mebibytes(dense)} -> {mebibytes(file_bytes)}"
    if macs is None or not macs["compressed"]:
        return line
    ratio = macs["dense"] / macs["compressed"]
    return f"{line}; {ratio:.2f} times fewer multiply-accumulates; `lowrank-vit benchmark` measures the speed"


def show_trials(trials: Sequence[Any], max_loss: float) -> None:
    """Print the sizes that a search tried."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    known = {name: title for name, title in MEASURED.items() if name in trials[0].measured}
    for column in ("reduction %", "points lost", *known.values(), ""):
        table.add_column(column, justify="right", no_wrap=True)
    for trial in trials:
        numbers = [trial.measured[name] for name in known]
        table.add_row(
            f"{100 * trial.reduction:.2f}",
            f"{trial.lost:.2f}",
            *("" if number is None else f"{number:.2f}" for number in numbers),
            "ok" if trial.lost <= max_loss else "too much",
        )
    console = make_console()
    console.print(f"tried, to lose at most {max_loss:g} points on {trials[0].measured['n']} unseen images:")
    console.print(table)


def show_plans(result: Mapping[str, Any]) -> None:
    """Print what every size would cost."""
    dense = result["dense"]
    console = make_console()
    console.print(
        f"[bold]{escape(result['model'])}[/], dense: {dense['parameters']:,} parameters, {dense['macs'] / 1e6:,.1f} M MACs, "
        f"{mebibytes(dense['bytes'])}; recipe [bold]{escape(result['recipe'])}[/], predicted loss in {result['currency']}"
    )
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    asked = "reduction %" if result["cost"] == "parameters" else f"{result['cost']} %"
    asked = asked if all("reduction" in size for size in result["sizes"]) else "budget"
    for column in (asked, "predicted loss", "parameters", "M MACs", "MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for size in result["sizes"]:
        asked = f"{-100 * size['reduction']:.0f}" if "reduction" in size else size["budget"]
        if "reason" in size:
            table.add_row(asked, "out of reach")
            continue
        costs = (f"{size['parameters']:,}", f"{size['macs'] / 1e6:,.1f}", f"{size['bytes'] / 2**20:.2f}")
        table.add_row(asked, f"{size['predicted_loss']:.4f}", *costs)
    console.print(table)
    console.print(
        "The predicted loss is a second-order estimate, before anything is measured: the real divergence is often several "
        "times higher. `lowrank-vit sweep` measures accuracy."
    )


def show_sweep(result: Mapping[str, Any]) -> None:
    """Print what the sizes of a sweep keep and cost, in the order in which they were asked for."""
    rows = result["rows"]
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    costs = list(rows[0]["costs"])
    several = len({row["recipe"] for row in rows}) > 1
    first = ("recipe", "asked") if several else ("asked",)
    for column in (*first, *(f"{cost} %" for cost in costs), "top-1 %", "agreement %", "KL nats"):
        table.add_column(column, justify="left" if column in first else "right", no_wrap=True)
    for row in rows:
        shares = (f"{100 * compressed / dense:.1f}" for dense, compressed in row["costs"].values())
        top1 = "" if row["top1"] is None else f"{row['top1']:.2f}"
        table.add_row(*(row[name] for name in first), *shares, top1, f"{row['agreement']:.2f}", f"{row['kl']:.4f}")
    console = make_console()
    dense = "" if rows[0]["top1_dense"] is None else f", dense top-1 {rows[0]['top1_dense']:.2f} %"
    console.print(
        f"[bold]{escape(result['model'])}[/], recipe [bold]{escape(result['recipe'])}[/], on {rows[0]['n']} images{dense}; "
        "costs in % of the dense model's"
    )
    console.print(table)


def mebibytes(count: int) -> str:
    """Format a size in MiB."""
    return f"{count / 2**20:.2f} MiB"


def precision(report: Report) -> str:
    """Describe how the weights are stored."""
    entry = report.get("quantization")
    if entry is None:
        return "not quantised"
    if not entry["layers"]:
        return "float16"
    lost = 100 * entry["relative_weight_error"]
    bits = f"{entry['bits']} bits" + (" in the mean" if "layer_bits" in entry else "")
    return f"{bits} in {entry['layers']} layers, float16 elsewhere (weights differ by {lost:.2f} %)"


def kept(layer: LayerEntry) -> str:
    """Say what a layer or module keeps: a rank, directions of its heads, or hidden units."""
    details = layer.get("details", {})
    parts = [f"{words} {details[unit]} of {details[f'{unit}_of']}" for unit, words in WORDS.items() if unit in details]
    if parts:
        return ", ".join(parts)
    if layer["rank"] is None:
        return f"dense, {layer['in_features']} x {layer['out_features']}"
    beside = f", {details[ROW]} rows" if details.get(ROW) else ""
    return f"rank {layer['rank']} of {layer['in_features']} x {layer['out_features']}{beside}"


def _show_layers(console: Console, layers: Sequence[LayerEntry]) -> None:
    """Print the table of layers; its errors were measured before quantisation."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True, min_width=max(len(layer["name"]) for layer in layers))
    compensated = any(layer["z"] is not None for layer in layers)
    for column in ("kept", *(["Z"] if compensated else []), "params", "error of\noutput %", "on unseen\nimages %"):
        table.add_column(column, justify="left" if column == "kept" else "right", no_wrap=column != "kept")
    for layer in layers:
        unseen, z = layer["relative_error_held_out"], layer["z"]
        table.add_row(
            escape(layer["name"]),
            kept(layer),
            *(["" if z is None else f"{z['params']:,}"] if compensated else []),
            f"{layer['params']:,}",
            f"{100 * layer['relative_error']:.2f}",
            "" if unseen is None else f"{100 * unseen:.2f}",
        )
    console.print(table)
