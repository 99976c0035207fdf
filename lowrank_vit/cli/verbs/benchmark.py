"""``benchmark``: the measured speed of a folder's model beside the dense one."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.cli import arguments
from lowrank_vit.runtime.errors import InputError, amount

if TYPE_CHECKING:
    from rich.table import Table


HELP = "measure latency, throughput and memory beside the dense model"
EXAMPLE = "small --batches 1,8 --modes eager"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_folder(parser)
    parser.add_argument("--batches", default="1,8,64", metavar="B,B,...", help="images at a time")
    parser.add_argument("--modes", default="eager,compiled", metavar="MODE,...", help="eager, compiled or both")
    parser.add_argument(
        "--runtime",
        metavar="NAME,...",
        help="what runs the models, in place of --modes: torch, compile, onnxruntime, openvino (exported files, on the CPU)",
    )
    parser.add_argument("--device", default="auto", help="cpu | cuda | auto: the CPU, and the GPU where there is one")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each setting is timed")
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
        help="torch.set_float32_matmul_precision, for both models",
    )
    parser.add_argument(
        "--onnx",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="time these files of `export` in onnxruntime in place of the models, each beside the first",
    )
    parser.add_argument(
        "--data", metavar="SPEC", help="measure top-1 of the --onnx files on its validation images, too"
    )
    arguments.add(parser, "--class-order")
    parser.add_argument("--limit", type=int, default=200, help="use this many validation images")
    arguments.add(parser, "--json")


def run(args: argparse.Namespace) -> None:
    """Measure a folder's model and the dense one in turns, setting by setting; or exported files, batch by batch."""
    if args.onnx is not None:
        _files(args)
        return
    if args.data is not None:
        raise InputError("--data is for files of --onnx: `lowrank-vit evaluate` measures a folder's accuracy")
    import torch

    from lowrank_vit.compression.runtimes import benchmark, settings
    from lowrank_vit.modules.counting import parameter_bytes
    from lowrank_vit.runtime.hardware import resolve_device
    from lowrank_vit.runtime.progress import say
    from lowrank_vit.storage import folder as storage

    if args.device != "auto":
        resolve_device(args.device)
    chosen = settings(args.device, (args.runtime or args.modes).split(","), _sizes(args.batches))
    if any(setting.mode == "compiled" for setting in chosen):
        say("settings with torch.compile are compiled first, for up to minutes each; that is not counted")
    compressed = storage.load_wide(args.folder)
    dense = storage.dense_architecture(args.folder)
    torch.set_float32_matmul_precision(args.matmul_precision)
    models = {"dense": dense, "compressed": compressed}
    measured = benchmark(models, chosen, seconds=args.seconds, clock=args.clock, progress=True)
    size = {"dense": parameter_bytes(dense), "compressed": storage.file_bytes(args.folder)}
    results = {"model": storage.load_report(args.folder)["model"], "bytes": size, **measured}
    if args.json:
        print(json.dumps(results))
    else:
        _show(results)


def _files(args: argparse.Namespace) -> None:
    from timm.data import resolve_model_data_config

    from lowrank_vit.compression.exported_files import compare_files
    from lowrank_vit.data import ImageData
    from lowrank_vit.modules.counting import input_size
    from lowrank_vit.objectives.classification import classes_of
    from lowrank_vit.storage import folder as storage

    model = storage.load_wide(args.folder)
    size = input_size(model)
    if size is None:
        raise InputError("the model does not say the size of its images, so its files cannot be run")
    labelled = None
    if args.data is not None:
        labelled = ImageData(
            args.data,
            resolve_model_data_config(model),
            batch_size=16,
            limit=args.limit,
            classes=classes_of(model),
            class_order=args.class_order,
        ).val_dataloader()
    batches = _sizes(args.batches)
    rows = compare_files(args.onnx, size, batches, seconds=args.seconds, clock=args.clock, labelled=labelled)
    if args.json:
        print(json.dumps(rows))
        return
    for row in rows:
        times = ", ".join(
            f"batch {batch} {1e3 * one['seconds']:.1f} ms ({one['speedup']:.2f} x)"
            for batch, one in row["times"].items()
        )
        top1 = f"top-1 {row['top1']:.2f} % of {row['n']}, " if "top1" in row else ""
        print(f"{row['file']}: {row['bytes'] / 2**20:.2f} MiB, {top1}{times}")


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--batches {text!r} cannot be read: give whole numbers, as in 1,8,64") from None


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.1f}"


def _show(results: Mapping[str, Any]) -> None:
    from lowrank_vit.cli.view import mebibytes
    from lowrank_vit.runtime.progress import make_console

    macs, params, size = results["macs"], results["params"], results["bytes"]
    console = make_console()
    console.print(
        f"[bold]{results['model']}[/], dense to compressed: {params['dense']:,} to {params['compressed']:,} parameters, "
        f"{mebibytes(size['dense'])} to {mebibytes(size['compressed'])} on disk, {macs['dense'] / 1e6:,.1f} to "
        f"{macs['compressed'] / 1e6:,.1f} M MACs (1 : {macs['dense'] / macs['compressed']:.2f}); "
        f"{amount(results['threads'], 'thread')}, {results['clock']} clock, "
        f"matrix products in precision {results['matmul_precision']}"
    )
    for table in _tables(results["rows"]):
        console.print(table)


def _tables(rows: Sequence[Mapping[str, Any]]) -> "tuple[Table, Table]":
    """Make a table of times and one of throughput and memory, each within 80 columns."""
    from rich.table import Table

    times, rates = (Table(box=None, header_style="bold", padding=(0, 1, 0, 0)) for _ in range(2))
    for table, columns in (
        (times, ("dense ms", "small ms", "speed-up", "speed-up /\nMACs ratio %")),
        (rates, ("dense images/s", "small images/s", "dense MiB", "small MiB", "files MiB")),
    ):
        table.add_column("setting", no_wrap=True)
        for column in ("batch", *columns):
            table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        dense, small = row["dense"], row["compressed"]
        low, high = small["speedup_quartiles"]
        setting = " ".join(row[name] for name in ("device", "dtype", "mode")), str(row["batch"])
        times.add_row(
            *setting,
            *(f"{1e3 * one['seconds']:.1f}" for one in (dense, small)),
            f"{small['speedup']:.2f} ({low:.2f}-{high:.2f})",
            f"{100 * small['share_of_mac_ratio']:.0f}",
        )
        rates.add_row(
            *setting,
            *(f"{one['images_per_second']:.1f}" for one in (dense, small)),
            *(_mebibytes(one["peak_memory_bytes"]) for one in (dense, small)),
            " / ".join(_mebibytes(one["file_bytes"]) for one in (dense, small) if "file_bytes" in one),
        )
    return times, rates
