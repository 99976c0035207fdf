"""``list``: show the names to choose from."""

import argparse
import json
from typing import Any


def add_parser(verbs: Any) -> None:
    """Add the verb and its arguments."""
    parser = verbs.add_parser("list", help="list the models, recipes or methods to choose from", example="recipes")
    kinds = (
        "models", "recipes", "methods", "decompositions", "allocators", "compensations", "quantizers", "tokens", "exporters",
    )  # fmt: skip
    parser.add_argument("kind", choices=kinds, help="what to list")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the names of a kind, one a line."""
    from lowrank_vit.cli.listing import listing

    entries = listing(args.kind)
    if args.json:
        print(json.dumps(list(entries)))
        return
    width = max(map(len, entries))
    for name, about in entries.items():
        print(f"{name:{width}}  {about}".rstrip())
