"""``push``: upload a folder to the Hugging Face hub."""

import argparse

from lowrank_vit.cli.arguments import add_folder

HELP = "upload a folder to the Hugging Face hub, from where hf_hub:OWNER/NAME loads it"
EXAMPLE = "small OWNER/NAME --private"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_folder(parser)
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository to upload to")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def run(args: argparse.Namespace) -> None:
    """Upload a folder; a broken one is refused."""
    from lowrank_vit.compression.save import push_to_hub

    print(f"pushed to {push_to_hub(args.folder, args.repository, private=args.private)}")
