"""What ``compress`` chooses together with the sizes: bits of layers under a budget of bytes, tokens under one of time."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lowrank_vit.cli.arguments import whole_numbers
from lowrank_vit.records.budgets import Size
from lowrank_vit.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from lowrank_vit.compression.analysis import Analysis
    from lowrank_vit.compression.recipe import Recipe
    from lowrank_vit.records.report import Report


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add what is chosen together with the sizes."""
    parser.add_argument(
        "--bits",
        type=whole_numbers,
        metavar="B[,B...]",
        help="choose the bits of each layer from these, 2 to 8, together with the sizes; needs --budget bytes=...",
    )
    parser.add_argument(
        "--tokens",
        choices=("auto", "none"),
        help="merge tokens, too, as far as that serves the held-out images, under --budget macs=... or latency=..., or not "
        "(default: the recipe's; best merges where the model allows it)",
    )


def check_choices(args: argparse.Namespace, recipe: Recipe, wanted: Mapping[str, Size | None]) -> None:
    """Raise ``InputError``, before a model is loaded, unless all can be chosen together."""
    if args.tokens == "auto" and (args.bits is not None or args.nested or args.budget is None):
        raise InputError(
            "tokens and sizes are chosen together for macs or time: give --tokens with --budget macs=0.6, without --bits "
            "and --nested"
        )
    if args.bits is not None:
        from lowrank_vit.compression.joint import check_joint

        if args.budget is None or args.nested:
            reason = "a nested folder has no bits" if args.nested else "sizes and bits are chosen together in bytes"
            raise InputError(f"{reason}: give --bits with --budget bytes=4MiB, without --nested")
        for size in wanted.values():
            assert size is not None
            check_joint(recipe, size, args.bits)


def check_size(args: argparse.Namespace, model: nn.Module, recipe: Recipe, size: Size, **options: Any) -> None:
    """Raise ``InputError``, before an image is seen, for a size that is known to be out of reach."""
    if args.bits is None:
        from lowrank_vit.compression.budget import check_budget

        check_budget(model, recipe, size, **options)


def made(args: argparse.Namespace, analysis: Analysis, size: Size) -> tuple[nn.Module, Report]:
    """Make the model of a size, with all that is chosen together with it."""
    from lowrank_vit.compression.compress import resized

    small, report = resized(analysis, size, args.bits)
    _show_splits(report)
    return small, report


def _show_splits(report: Any) -> None:
    """Print what tokens and sizes were tried, and how far each changes the outputs."""
    from lowrank_vit.runtime.processes import is_first

    for split in report["shared"]["tried"] if "shared" in report and is_first() else []:
        pairs = ", ".join(map(str, split["pairs"])) if any(split["pairs"]) else "none"
        print(f"pairs merged: {pairs}; {split['parameters']:,} parameters, divergence {split['divergence']:.4g}")
