"""``plan``: what every size of a model would cost, without compressing it."""

import argparse
import json
from typing import Any

from lowrank_vit.cli.arguments import (
    add_budget,
    add_calibration,
    add_compile,
    add_data,
    add_model,
    calibration_data,
    calibration_images,
    named_model,
)
from lowrank_vit.cli.recipe_file import recipe_from
from lowrank_vit.records.budgets import Budget, budget_of, parse_budgets
from lowrank_vit.records.costs import COSTS

REDUCTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def add_parser(verbs: Any) -> None:
    """Add the verb and its arguments."""
    parser = verbs.add_parser(
        "plan",
        help="show what several sizes would cost, from one calibration, without compressing",
        example="--model digits_deit_small --data digits --budget macs=0.8,0.6",
    )
    add_model(parser, required=True)
    add_data(parser)
    parser.add_argument("--recipe", default="best", help="see `list recipes`")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--cost", default="parameters", help="what to reduce by 10 to 80 %%: parameters, macs or bytes")
    add_budget(sizes)
    add_compile(parser)
    parser.add_argument(
        "--sites", metavar="REGEX", help="compress the linear layers whose names match (default: all in blocks)"
    )
    add_calibration(parser, held_out=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run, check=check)


def check(args: argparse.Namespace) -> None:
    """Raise ``InputError`` for a cost that nothing is counted in, and for several in one budget."""
    COSTS.get(args.cost)
    _budgets(args)


def _budgets(args: argparse.Namespace) -> list[Budget]:
    return [] if args.budget is None else [budget_of(size) for size in parse_budgets(args.budget).values()]


def run(args: argparse.Namespace) -> None:
    """Analyse a model once and print the plan of every size."""
    from lowrank_vit.cli.view import show_plans
    from lowrank_vit.compression.compress import analyse
    from lowrank_vit.compression.outlook import outlook
    from lowrank_vit.runtime.processes import is_first

    recipe = recipe_from(args.recipe)
    model, _ = named_model(args)
    options = {} if args.sites is None else {"sites": args.sites}
    analysis = analyse(
        model,
        calibration_images(calibration_data(args, model)),
        recipe,
        seed=args.seed,
        device=args.device,
        progress=is_first(),
        batch_size=args.batch_size,
        runtime="compile" if args.compile else args.runtime,
        **options,
    )
    budgets = _budgets(args)
    cost = next((budget.cost for budget in budgets), args.cost)
    sizes = budgets or REDUCTIONS
    result = {"model": args.model, "recipe": analysis.recipe.name, **outlook(analysis, sizes, cost)}
    if args.json:
        print(json.dumps(result))
    else:
        show_plans(result)
