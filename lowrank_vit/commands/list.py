"""``list``: what can be chosen from."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(verbs: Any) -> None:
    """The verb's arguments."""
    parser = verbs.add_parser("list", help="what can be chosen from")
    parser.add_argument("kind", choices=("models", "recipes", "decompositions", "allocators", "compensations"))
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """``list``: names, one a line."""
    from lowrank_vit.listing import listing

    entries = listing(args.kind)
    if args.json:
        print(json.dumps(list(entries)))
        return
    width = max(map(len, entries))
    for name, about in entries.items():
        print(f"{name:{width}}  {about}".rstrip())
