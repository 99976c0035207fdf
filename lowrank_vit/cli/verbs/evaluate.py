"""``evaluate``: measure top-1, top-5 and loss, beside the dense model's where it is asked for."""

import argparse
import json
from typing import TYPE_CHECKING

from lowrank_vit.cli import arguments
from lowrank_vit.cli.train_folder import dense_model
from lowrank_vit.runtime.errors import InputError

if TYPE_CHECKING:
    pass


HELP = "measure top-1, top-5 and loss of a compressed or a dense model"
EXAMPLE = "small --dense --data imagefolder:PATH"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_folder(parser, optional=True)
    arguments.add_model(parser, required=False)
    arguments.add_data(parser)
    parser.add_argument("--split", choices=("train", "validation"), default="validation", help="images to evaluate on")
    parser.add_argument("--limit", type=int, help="evaluate this many images, drawn by the seed (default: all)")
    parser.add_argument(
        "--dense",
        nargs="?",
        action=arguments.BesideDense,
        default=False,
        metavar="FILE",
        help="compare DIR with the dense model that it was made from; its weights are those of --checkpoint, or FILE",
    )
    arguments.add(parser, "--json")


def check(args: argparse.Namespace) -> None:
    """Raise ``InputError`` where there is nothing to compare with the dense model."""
    if args.dense and args.folder is None:
        raise InputError("--dense compares a compressed model's DIR with its dense model: give DIR")


def run(args: argparse.Namespace) -> None:
    """Evaluate a folder's model, or a dense model by name."""
    model, _ = arguments.chosen_model(args)
    data = arguments.image_data(args, model, limit=args.limit, evaluation_split=args.split)
    dense = dense_model(args) if args.dense else None
    hardware = arguments.lightning_hardware(args)
    from lowrank_vit.cli.view import feature_line
    from lowrank_vit.stages.evaluate.accuracy import evaluate

    result = evaluate(model, data, dense=dense, hardware=hardware)
    features = "feature_error" in result
    if "top1_dense" in result:
        result["dense"] = {"top1": result.pop("top1_dense")}
    if args.json:
        print(json.dumps(result))
        return
    if features:
        print(f"{feature_line(result)}   n {result['n']} ({args.data}, {args.split})")
        return
    print(
        f"top-1 {result['top1']:.2f} %   top-5 {result['top5']:.2f} %   "
        f"loss {result['loss']:.4f}   n {result['n']} ({args.data}, {args.split})"
    )
    if dense is not None:
        print(
            f"dense {result['dense']['top1']:.2f} %   same class for {result['agreement']:.2f} %   "
            f"KL(dense || compressed) {result['kl']:.4f} nats"
        )
    elif args.folder is not None:
        print("to compare with the dense model, add --dense")
