"""``push``: upload a folder to the Hugging Face hub."""

import argparse
from typing import Any

from lowrank_vit.cli.arguments import add_folder


def add_parser(verbs: Any) -> None:
    """Add the verb and its arguments."""
    parser = verbs.add_parser(
        "push",
        help="upload a folder to the Hugging Face hub, from where hf_hub:OWNER/NAME loads it",
        example="small OWNER/NAME --private",
    )
    add_folder(parser)
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository to upload to")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Upload a folder; a broken one is refused."""
    from lowrank_vit.compression.save import push_to_hub

    print(f"pushed to {push_to_hub(args.folder, args.repository, private=args.private)}")
