"""``tokens``: let a model hand on fewer tokens."""

import argparse
from typing import Any

from lowrank_vit.cli import arguments

HELP = "merge or drop tokens in a compressed or a dense ViT, to save multiply-accumulates"
EXAMPLE = "small --rule tome --macs 0.6 --out faster"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_folder(parser, optional=True)
    arguments.add_model(parser, required=False)
    parser.add_argument(
        "--rule",
        default="tome",
        metavar="NAME",
        help="tome: merge pairs; evit: keep what is attended to; spvit-kong-gates: learn what to keep, on --data, without "
        "labels; spvit-kong: with labels, and the weights, too",
    )
    strength = parser.add_mutually_exclusive_group(required=True)
    strength.add_argument(
        "--macs",
        type=float,
        metavar="SHARE",
        help="how many of the dense model's multiply-accumulates may remain, e.g. 0.6",
    )
    strength.add_argument(
        "--r", type=arguments.natural, metavar="PAIRS", help="pairs of tokens to merge in every block (tome)"
    )
    strength.add_argument(
        "--keep", type=float, metavar="SHARE", help="share of the tokens to keep, three times (not tome)"
    )
    parser.add_argument(
        "--epochs", type=arguments.natural, default=10, help="passes over the images, for rules that learn"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-2, help="initial learning rate, for rules that learn")
    arguments.add_data(parser, required=False, shared=False)
    arguments.add_calibration(parser, held_out=False)
    arguments.add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Let a folder's model, or a dense one by name, hand on fewer tokens; save it to another folder."""
    from lowrank_vit.stages.tokens import TOKENS

    TOKENS.get(args.rule)  # a mistyped name is told before anything heavier is imported
    from lowrank_vit.cli.view import size_line
    from lowrank_vit.compression.fewer_tokens import fewer_tokens
    from lowrank_vit.storage import folder as storage

    model, model_args = arguments.chosen_model(args)
    options = {name: value for name in ("macs", "r", "keep") if (value := getattr(args, name)) is not None}
    small: Any = fewer_tokens(model, args.rule, **options, **_learning(args, model))
    report = small.compression_report
    storage.save(small, args.out, report, model_args=model_args)
    rule = ", ".join(f"{name} {value}" for name, value in report["tokens"].items() if name not in ("rule", "learnt"))
    print(f"{args.rule} ({rule}): {size_line(report, storage.file_bytes(args.out))}; saved to {args.out}")


def _learning(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Return what a rule learns on, and how; nothing without ``--data``."""
    from lowrank_vit.runtime.errors import InputError
    from lowrank_vit.stages.tokens import TOKENS, LearntRule

    rule = TOKENS.get(args.rule)()
    if not isinstance(rule, LearntRule):
        if args.data is not None:
            raise InputError(f"the token rule {args.rule!r} learns nothing: leave out --data")
        return {}
    if args.data is None:
        raise InputError(f"the token rule {args.rule!r} learns what to keep: name images by --data")
    data, training = (
        arguments.calibration_data(args, model),
        {"epochs": args.epochs, "lr": args.learning_rate, "seed": args.seed},
    )
    training |= {"hardware": arguments.lightning_hardware(args)} if rule.labelled else {"batch_size": args.batch_size}
    return {"learn_on": data if rule.labelled else arguments.calibration_images(data), "training": training}
