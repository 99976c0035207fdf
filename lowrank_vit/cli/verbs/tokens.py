"""``tokens``: let a model hand on fewer tokens."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lowrank_vit.cli.arguments import add_model, chosen_model, natural


def add_parser(verbs: Any) -> None:
    """Add the verb and its arguments."""
    parser = verbs.add_parser(
        "tokens", help="merge or drop tokens in a compressed or a dense ViT: fewer multiply-accumulates"
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR")
    add_model(parser, required=False)
    parser.add_argument(
        "--rule", default="tome", metavar="NAME", help="tome: merge pairs; evit: keep what is attended to"
    )
    strength = parser.add_mutually_exclusive_group(required=True)
    strength.add_argument(
        "--macs", type=float, metavar="SHARE", help="of the dense model's multiply-accumulates to leave"
    )
    strength.add_argument("--r", type=natural, metavar="PAIRS", help="merged in every block (tome)")
    strength.add_argument("--keep", type=float, metavar="SHARE", help="of the tokens, three times (evit)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Let a folder's model, or a dense one by name, hand on fewer tokens; save it to another folder."""
    from lowrank_vit.cli.view import size_line
    from lowrank_vit.pipeline.tokens import fewer_tokens
    from lowrank_vit.storage import folder as storage

    storage.check_free(args.out)
    model, model_args = chosen_model(args)
    options = {name: value for name in ("macs", "r", "keep") if (value := getattr(args, name)) is not None}
    small: Any = fewer_tokens(model, args.rule, **options)
    report = small.compression_report
    storage.save(small, args.out, report, model_args=model_args)
    rule = ", ".join(f"{name} {value}" for name, value in report["tokens"].items() if name != "rule")
    print(f"{args.rule} ({rule}): {size_line(report, storage.file_bytes(args.out))}; saved to {args.out}")
