"""``plan``: what every size of a model would cost, without compressing it."""

import argparse
import json

from lowrank_vit.cli import arguments
from lowrank_vit.cli.recipe_file import recipe_from
from lowrank_vit.records.budgets import Budget, budget_of, parse_budgets
from lowrank_vit.records.costs import COSTS

REDUCTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


HELP = "show what several sizes would cost, from one calibration, without compressing"
EXAMPLE = "--model digits_deit_small --data digits --budget macs=0.8,0.6"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_model(parser, required=True)
    arguments.add_data(parser)
    arguments.add(parser, "--recipe")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--cost", default="parameters", help="what to reduce by 10 to 80 %%: parameters, macs or bytes")
    arguments.add(sizes, "--budget")
    arguments.add(parser, "--compile", "--runtime", "--sites")
    arguments.add_calibration(parser, held_out=False)
    arguments.add(parser, "--json")


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
    model, _ = arguments.named_model(args)
    options = arguments.chosen_sites(args)
    analysis = analyse(
        model,
        arguments.calibration_images(arguments.calibration_data(args, model)),
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
