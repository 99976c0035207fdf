"""``export``: write a model to a file that runs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.cli.arguments import (
    add_calibration,
    add_data,
    add_folder,
    add_model,
    calibration_data,
    calibration_images,
    check_out,
    chosen_model,
)
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.export.formats import EXPORTERS, exporter

if TYPE_CHECKING:
    from torch import nn


def add_parser(verbs: Any) -> None:
    """Add the verb and its arguments."""
    parser = verbs.add_parser(
        "export",
        help=f"write a model for {' or '.join(EXPORTERS.get(name).reader for name in EXPORTERS.names())}, and check the file",
        example="small --format onnx --out small.onnx",
    )
    add_folder(parser, optional=True)
    add_model(parser, required=False)
    parser.add_argument("--format", choices=EXPORTERS.names(), required=True, help="see `list exporters`")
    integers = parser.add_mutually_exclusive_group()
    for bits, what in ((8, "weights and activations"), (4, "weights, for products that know them")):
        integers.add_argument(
            f"--int{bits}",
            dest="bits",
            action="store_const",
            const=bits,
            help=f"{what} in {bits} bits, in an ONNX file; needs --data",
        )
    add_data(parser, required=False, shared=False)
    add_calibration(parser, held_out=False)
    parser.set_defaults(calibration_samples=128, batch_size=16)
    parser.add_argument(
        "--tolerated",
        type=float,
        default=0.01,
        metavar="NATS",
        help="what all layers in 8 bits may cost together, as measured one by one; the most sensitive ones stay float",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.set_defaults(run=run, check=check)


def check(args: argparse.Namespace) -> None:
    """Raise ``InputError`` where the file cannot be written, lacks a package, or is of a kind that has no integers."""
    if args.out.exists():
        raise InputError(f"{args.out} exists already: choose another --out")
    if args.bits is not None and (args.format != "onnx" or args.data is None):
        raise InputError(f"--int{args.bits} is for --format onnx, and looks at images: give --data")
    check_out(args)
    exporter(args.format)


def run(args: argparse.Namespace) -> None:
    """Export a folder's model, or a dense model by name; the file is compared with the model before it gets its name."""
    from lowrank_vit.cli.view import mebibytes
    from lowrank_vit.stages.export.export import export

    model, _ = chosen_model(args)
    if args.bits is not None:
        _export_integers(args, model)
    else:
        differences = export(model, args.out, args.format)
        shown = ", ".join(f"{difference:.1e} at batch {batch}" for batch, difference in differences.items())
        print(f"largest difference of a logit from the model in torch: {shown}")
    print(f"{mebibytes(args.out.stat().st_size)}, any batch size; saved to {args.out}")


def _export_integers(args: argparse.Namespace, model: nn.Module) -> None:
    """Write a file that computes in integers, and say what became of it."""
    from lowrank_vit.stages.export.integers import export_integers

    images = calibration_images(calibration_data(args, model)).each()
    made = export_integers(model, args.out, args.bits, images, tolerated=args.tolerated, progress=True)
    print(
        f"{made.rounded} products of weights in {args.bits} bits, {len(made.kept)} in float; "
        f"{made.divergence:.2g} from the float file on the calibration images (for a classifier, KL in nats)"
    )
