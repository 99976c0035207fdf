"""``benchmark``: the measured speed of a folder's model beside the dense one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_vit.errors import InputError


def add_parser(verbs: Any) -> None:
    """The verb's arguments."""
    parser = verbs.add_parser("benchmark", help="latency, throughput and memory, beside the dense model")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--batches", default="1,8,64", metavar="B,B,...")
    parser.add_argument("--modes", default="eager,compiled", metavar="MODE,...", help="eager, compiled or both")
    parser.add_argument("--device", default="auto", help="cpu | cuda | auto: the CPU, and the GPU where there is one")
    parser.add_argument("--seconds", type=float, default=10.0, help="that each setting is timed for (default: 10)")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: count the processor's time of this process, for a machine that others use",
    )
    parser.add_argument(
        "--matmul-precision",
        choices=("highest", "high", "medium"),
        default="highest",
        help="torch.set_float32_matmul_precision, for both models (default: highest)",
    )
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """``benchmark``: a folder's model and the dense one in turns, setting by setting."""
    import torch

    from lowrank_vit import storage
    from lowrank_vit.benchmark import benchmark, settings
    from lowrank_vit.cost import parameter_bytes
    from lowrank_vit.steps import resolve_device

    if args.device != "auto":
        resolve_device(args.device)
    chosen = settings(args.device, args.modes.split(","), _sizes(args.batches))
    compressed = storage.load(args.folder)
    dense = storage.dense_architecture(args.folder)
    torch.set_float32_matmul_precision(args.matmul_precision)
    found = benchmark(
        {"dense": dense, "compressed": compressed}, chosen, seconds=args.seconds, clock=args.clock, progress=True
    )
    size = {"dense": parameter_bytes(dense), "compressed": storage.file_bytes(args.folder)}
    found = {"model": storage.load_report(args.folder)["model"], "bytes": size, **found}
    if args.json:
        print(json.dumps(found))
    else:
        _show(found)


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--batches {text!r} cannot be read: give whole numbers, as in 1,8,64") from None


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.1f}"


def _show(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lowrank_vit.view import mebibytes

    macs, params, size = found["macs"], found["params"], found["bytes"]
    console = Console()
    console.print(
        f"[bold]{found['model']}[/], dense to compressed: {params['dense']:,} to {params['compressed']:,} parameters, "
        f"{mebibytes(size['dense'])} to {mebibytes(size['compressed'])} on disk, {macs['dense'] / 1e6:,.1f} to "
        f"{macs['compressed'] / 1e6:,.1f} M MACs (1 : {macs['dense'] / macs['compressed']:.2f}); "
        f"{found['threads']} threads, {found['clock']} clock, "
        f"matrix products in precision {found['matmul_precision']}"
    )
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("device", "type", "mode"):
        table.add_column(column)
    for column in ("batch", "dense ms", "small ms", "images/s", "images/s", "MiB", "MiB", "speed-up", "of MACs' %"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found["rows"]:
        dense, small = row["dense"], row["compressed"]
        low, high = small["speedup_quartiles"]
        table.add_row(
            *(row[name] for name in ("device", "dtype", "mode")),
            str(row["batch"]),
            *(f"{1e3 * one['seconds']:.1f}" for one in (dense, small)),
            *(f"{one['images_per_second']:.1f}" for one in (dense, small)),
            *(_mebibytes(one["peak_memory_bytes"]) for one in (dense, small)),
            f"{small['speedup']:.2f} ({low:.2f}-{high:.2f})",
            f"{100 * small['share_of_mac_ratio']:.0f}",
        )
    console.print(table)
