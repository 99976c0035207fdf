"""``classify``: what a model sees in photographs."""

import argparse
from pathlib import Path

from lowrank_vit.cli.arguments import add_folder

HELP = "name what a model sees in photographs"
EXAMPLE = "deit_tiny_4mib photograph.jpg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_folder(parser)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a file, such as a .jpg or .png")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name")


def run(args: argparse.Namespace) -> None:
    """Print the most probable classes of each image."""
    from lowrank_vit.compression.save import load
    from lowrank_vit.stages.evaluate.classify import classify

    model = load(args.folder)
    for path in args.images:
        found = classify(model, path, args.top)
        print(path)
        for name, percent in found:
            print(f"{percent:5.1f} %  {name}")
