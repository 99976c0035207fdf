"""``evaluate``: top-1, top-5 and loss."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lowrank_vit.commands.arguments import add_data, add_model, chosen_model, image_data, lightning_accelerator


def add_parser(verbs: Any) -> None:
    """The verb's arguments."""
    parser = verbs.add_parser("evaluate", help="top-1, top-5 and loss of a compressed or a dense model")
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR")
    add_model(parser, required=False)
    add_data(parser)
    parser.add_argument("--split", choices=("train", "validation"), default="validation")
    parser.add_argument("--limit", type=int, help="evaluate this many images, drawn by the seed")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """``evaluate``: a folder, or a dense model by name."""
    from lowrank_vit.evaluate import evaluate
    from lowrank_vit.parallel import layout

    accelerator = lightning_accelerator(args)
    model = chosen_model(args)
    data = image_data(args, model, limit=args.limit, evaluation_split=args.split)
    devices, num_nodes = layout()
    result = evaluate(model, data, devices=devices, num_nodes=num_nodes, accelerator=accelerator)
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"top-1 {result['top1']:.2f} %   top-5 {result['top5']:.2f} %   "
            f"loss {result['loss']:.4f}   n {result['n']} ({args.data}, {args.split})"
        )
