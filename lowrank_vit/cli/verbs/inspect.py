"""``inspect``: show what a folder holds."""

import argparse
import json
from pathlib import Path

from lowrank_vit.cli import arguments
from lowrank_vit.cli.early import check_figure
from lowrank_vit.runtime.errors import InputError

HELP = "show what a compressed model's folder holds"
EXAMPLE = "small --plot ranks.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_folder(parser)
    arguments.add(parser, "--json")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw ranks, errors and the steps of Algorithm 1 (.png)"
    )


def run(args: argparse.Namespace) -> None:
    """Show a folder's report, and the size of its file."""
    from lowrank_vit.cli.view import show_report
    from lowrank_vit.storage import contents

    if not contents.check_contents(args.folder):
        from lowrank_vit.storage.folder import load

        load(args.folder)
    report, size = contents.load_report(args.folder), contents.file_bytes(args.folder)
    nested = contents.nested_entry(args.folder)
    if args.plot:
        check_figure(args.plot)
        if not report["layers"]:
            raise InputError(f"{args.folder} has no compressed layers to draw: leave out --plot")
        from lowrank_vit.cli.plot import plot_report

        plot_report(report, args.plot)
    if args.json:
        print(json.dumps({**report, "file_bytes": size, "nested": nested}))
    else:
        show_report(report, size, nested)
