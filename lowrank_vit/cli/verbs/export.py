"""``export``: write a model to a file that runs without this package."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_vit.cli import arguments
from lowrank_vit.runtime.errors import InputError, amount
from lowrank_vit.stages.export.formats import EXPORTERS, NARROWED, exporter, files

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowrank_vit.stages.export.export import Agreement


HELP = f"write a model for {' or '.join(EXPORTERS.get(name).reader for name in EXPORTERS.names())}, and check the file"
EXAMPLE = "small --format onnx --out small.onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_folder(parser, optional=True)
    arguments.add_model(parser, required=False)
    parser.add_argument("--format", choices=EXPORTERS.names(), required=True, help="see `list exporters`")
    integers = parser.add_mutually_exclusive_group()
    for bits, what in ((8, "weights and activations"), (4, "weights, for products that know them")):
        integers.add_argument(
            f"--int{bits}", dest="bits", action="store_const", const=bits, help=f"{what} in {bits} bits; needs --data"
        )
    parser.add_argument(
        "--symmetric", action="store_true", help="--int8 without zero points of activations, as TensorRT asks"
    )
    integers.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="float16: weights and activations, but for values that it cannot hold; needs --data",
    )
    arguments.add_data(parser, required=False, shared=False)
    arguments.add_calibration(parser, held_out=False)
    parser.set_defaults(calibration_samples=128, batch_size=16)
    parser.add_argument(
        "--tolerated",
        type=float,
        default=0.01,
        metavar="NATS",
        help="what all layers in 8 bits may cost together, as measured one by one (the most sensitive ones stay float), or "
        "float16 may cost",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")


def check(args: argparse.Namespace) -> None:
    """Raise ``InputError`` where the file cannot be written, lacks a package, or is of a kind that has no such numbers."""
    for path in files(EXPORTERS.get(args.format)(), args.out):
        if path.exists():
            raise InputError(f"{path} exists already: choose another --out")
    if args.symmetric and args.bits != 8:
        raise InputError("--symmetric says how --int8 rounds activations: give both")
    asked = "--dtype float16" if args.dtype == "float16" else None if args.bits is None else f"--int{args.bits}"
    if asked is not None and (args.format not in NARROWED.names() or args.data is None):
        raise InputError(f"{asked} is for --format {' or '.join(NARROWED.names())}, and looks at images: give --data")
    arguments.check_out(args)
    exporter(args.format)


def run(args: argparse.Namespace) -> None:
    """Export a folder's model, or a dense model by name; the file is compared with the model before it gets its name."""
    from lowrank_vit.cli.view import mebibytes
    from lowrank_vit.stages.export.export import export

    model, _ = arguments.chosen_model(args)
    if args.bits is not None:
        _export_integers(args, model)
    elif args.dtype == "float16":
        _export_half(args, model)
    else:
        differences = export(model, args.out, args.format)
        shown = ", ".join(f"{difference:.1e} at batch {batch}" for batch, difference in differences.items())
        print(f"largest difference of a logit from the model in torch: {shown}")
    written = files(exporter(args.format), args.out)
    size = mebibytes(sum(path.stat().st_size for path in written))
    print(f"{size}, any batch size; saved to {' and '.join(map(str, written))}")


def _export_integers(args: argparse.Namespace, model: nn.Module) -> None:
    from lowrank_vit.stages.export.integers import export_integers

    made = export_integers(
        model,
        args.out,
        args.bits,
        _images(args, model),
        file_format=args.format,
        symmetric=args.symmetric,
        tolerated=args.tolerated,
        progress=True,
    )
    print(f"{made.rounded} products of weights in {args.bits} bits, {len(made.kept)} in float; {_told(made.agreement)}")


def _export_half(args: argparse.Namespace, model: nn.Module) -> None:
    from lowrank_vit.stages.export.half import export_half

    made = export_half(model, args.out, _images(args, model), file_format=args.format, tolerated=args.tolerated)
    print(f"float16, {amount(len(made.kept), 'node')} in float32; {_told(made.agreement)}")


def _images(args: argparse.Namespace, model: nn.Module) -> Iterable[Tensor]:
    return arguments.calibration_images(arguments.calibration_data(args, model)).each()


def _told(found: Agreement) -> str:
    return (
        f"on the calibration images {found.percent:.1f} % keep their class, and the outputs are {found.divergence:.2g} from "
        "those of the float32 file (for a classifier, KL in nats)"
    )
