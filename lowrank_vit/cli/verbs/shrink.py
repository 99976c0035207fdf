"""``shrink``: take a smaller model out of a nested folder, without images."""

import argparse

from lowrank_vit.cli.arguments import add_folder, add_out

HELP = "extract a smaller model from a folder that `compress --nested` made"
EXAMPLE = "small --reduction 0.6 --out smaller"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_folder(parser)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--reduction", type=float, help="share of all parameters to remove, e.g. 0.6")
    size.add_argument(
        "--budget",
        metavar="COST=VALUE",
        help="what may remain of params, macs or bytes: a share of the dense model's, as in macs=0.5, or an amount, as in "
        "bytes=6MiB",
    )
    parser.add_argument("--device", default="cpu", help="auto | cpu | cuda")
    add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Save one size of a nested folder to a plain folder."""
    from lowrank_vit.cli.view import show_report
    from lowrank_vit.compression import save as saving
    from lowrank_vit.storage import folder as storage

    model = saving.load(args.folder, args.device, reduction=args.reduction, budget=args.budget)
    storage.save(model, args.out, model_args=storage.load_model_args(args.folder))
    show_report(storage.load_report(args.out), storage.file_bytes(args.out))
    print(f"saved to {args.out}")
