"""``scan``: replace the scans of a VMamba by smaller ones, or leave them out."""

import argparse

from lowrank_vit.cli import arguments

HELP = "replace a VMamba's scans by scans of one channel (VMeanba), or leave them out"
EXAMPLE = "--model digits_vmamba_small --data digits --mode left_out --layers 2 --refit dropped --out fewer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_model(parser, required=True)
    arguments.add_data(parser)
    arguments.add_calibration(parser)
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument(
        "--layers", type=arguments.natural, metavar="K", help="replace this many scans, those that matter least"
    )
    how_many.add_argument(
        "--drop",
        type=float,
        metavar="POINTS",
        help="replace as many scans as lose at most so many points of top-1 on the calibration images, before a refit "
        "(default: 3)",
    )
    parser.add_argument("--mode", default="inputs", help="what is averaged: inputs | discretised | output, or left_out")
    parser.add_argument("--skip", default="mean", help="what is added to each channel beside the scan: mean | channel")
    parser.add_argument(
        "--refit",
        help="how output layers are refitted: dropped (without a scan) | mean | directions | pooled (default: none)",
    )
    arguments.add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Replace the scans of a model by name, and save it to a folder."""
    from lowrank_vit.cli.view import comparison_line, size_line
    from lowrank_vit.compression.mean_scan import MeanScan, mean_scan
    from lowrank_vit.runtime.hardware import resolve_device
    from lowrank_vit.stages.evaluate.comparison import compare
    from lowrank_vit.storage import folder as storage

    method = MeanScan(args.mode, args.skip, args.refit)
    resolve_device(args.device)
    model, model_args = arguments.named_model(args)
    data = arguments.calibration_data(args, model)
    small, report = mean_scan(
        model,
        arguments.calibration_images(data),
        layers=args.layers,
        drop=args.drop,
        method=method,
        held_out=arguments.held_out_images(data),
        device=args.device,
        progress=True,
    )
    storage.save(small, args.out, report, model_args=model_args)
    entry = report["scan"]
    print(f"{entry['K']} of {len(entry['impact'])} scans replaced: {', '.join(entry['replaced']) or 'none'}")
    if data.holds_out:
        device = next(small.parameters()).device
        measured = compare(model.to(device), small, data.held_out_dataloader())
        print(comparison_line(measured, "unseen training images"))
    print(f"{size_line(report, storage.file_bytes(args.out))}; saved to {args.out}")
