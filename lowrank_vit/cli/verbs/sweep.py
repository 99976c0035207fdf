"""``sweep``: what several sizes keep, from one calibration by each recipe, and what each costs; drawn as a Pareto plot."""

import argparse
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.cli import arguments
from lowrank_vit.cli.early import check_figure
from lowrank_vit.cli.recipe_file import recipe_from
from lowrank_vit.records.budgets import Size, parse_budgets

if TYPE_CHECKING:
    from lowrank_vit.records.report import Report


HELP = "compress to several sizes from one calibration and measure each, without saving any"
EXAMPLE = "--model digits_deit_small --data digits --reduction 0.25,0.4,0.5 --plot pareto.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_model(parser, required=True)
    arguments.add_data(parser)
    parser.add_argument(
        "--recipe",
        type=arguments.words,
        default="best",
        metavar="NAME[,NAME...]",
        help="see `list recipes`; several are compared",
    )
    sizes = parser.add_mutually_exclusive_group(required=True)
    sizes.add_argument(
        "--reduction",
        type=arguments.shares,
        metavar="SHARE[,SHARE...]",
        help="shares of all parameters to remove, e.g. 0.25,0.5",
    )
    arguments.add(sizes, "--budget")
    arguments.add(parser, "--compile", "--runtime")
    arguments.add_calibration(parser, held_out=False)
    arguments.add(parser, "--sites")
    parser.add_argument(
        "--limit", type=int, help="compare on this many validation images, drawn by the seed (default: all)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw accuracy, or divergence, against each cost (.png)"
    )
    arguments.add(parser, "--json")


def check(args: argparse.Namespace) -> None:
    """Raise ``InputError`` for a figure that cannot be drawn."""
    if args.plot is not None:
        check_figure(args.plot)


def run(args: argparse.Namespace) -> None:
    """Compress to every size and compare each with the dense model; every argument is checked before."""
    from lowrank_vit.cli.view import show_sweep
    from lowrank_vit.compression.budget import check_budget
    from lowrank_vit.compression.compress import sweep
    from lowrank_vit.runtime.hardware import resolve_device
    from lowrank_vit.runtime.processes import is_first
    from lowrank_vit.stages.evaluate.accuracy import fitting
    from lowrank_vit.stages.evaluate.comparison import compare, readings

    sizes: Mapping[str, Size] = parse_budgets(args.budget) if args.budget is not None else args.reduction
    recipes, device = [*map(recipe_from, args.recipe)], resolve_device(args.device)
    model, _ = arguments.named_model(args)
    drawn = {"calibration_samples": args.calibration_samples, "held_out_samples": 0, "stratified": args.stratified}
    data = arguments.image_data(args, model, limit=args.limit, **drawn)
    options = arguments.chosen_sites(args)
    options |= {"seed": args.seed, "device": args.device, "batch_size": args.batch_size}
    options["runtime"] = "compile" if args.compile else args.runtime
    for recipe, size in product(recipes, sizes.values()):
        check_budget(model, recipe, size, *filter(None, [args.sites]))
    rows, dense, batches = [], model.to(device).eval(), fitting(model, data, data.val_dataloader())
    known = readings(dense, batches)
    for recipe in recipes:
        for small, report in sweep(
            model, arguments.calibration_images(data), recipe, [*sizes.values()], progress=is_first(), **options
        ):
            found = compare(dense, small, batches, progress=is_first(), known=known)
            rows.append({"recipe": recipe.name, **costs_of(report), **found})
    if not is_first():
        return
    result = {"model": args.model, "recipe": ", ".join(recipe.name for recipe in recipes), "rows": rows}
    if args.plot is not None:
        from lowrank_vit.cli.plot import plot_sweep

        plot_sweep(result, args.plot)
    if args.json:
        print(json.dumps(result))
    else:
        show_sweep(result)


def costs_of(report: "Report") -> dict[str, Any]:
    """Return what was asked for, and each cost of the dense model and of the smaller one, where it is known."""
    pairs: dict[str, Mapping[str, Any] | None] = {
        "params": report["params"],
        "macs": report["macs"],
        "bytes": report["weights_bytes"],
    }
    budget = report["budget"]
    if budget["where"]:
        pairs[budget["cost"]] = {"dense": budget["dense"], "compressed": budget["counted"]}
    costs = {name: [pair["dense"], pair["compressed"]] for name, pair in pairs.items() if pair is not None}
    return {"asked": budget["asked"], "costs": costs, "where": budget["where"]}
