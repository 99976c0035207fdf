"""``learn``: learn on labelled images what to keep, while the weights are trained, and compress by that."""

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.cli import arguments
from lowrank_vit.cli.train_folder import add_logger, chosen_logger
from lowrank_vit.cli.unfinished import check_new, unfinished
from lowrank_vit.records.budgets import Size, parse_budget
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import unknown

if TYPE_CHECKING:
    from lowrank_vit.compression.recipe import Recipe


HELP = "learn what to keep while training on labelled images, then compress accordingly"
EXAMPLE = "--model digits_deit_small --data digits --method vtp --budget params=0.6 --out learnt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_model(parser, required=True)
    arguments.add_data(parser)
    parser.add_argument("--method", required=True, help="see `list methods`")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--reduction", type=float, metavar="SHARE", help="share of all parameters to remove, e.g. 0.4")
    size.add_argument(
        "--budget",
        metavar="params=VALUE",
        help="what may remain of the parameters: a share, as in params=0.6, or an amount, as in params=3M",
    )
    parser.add_argument(
        "--epochs", type=int, default=10, help="passes over the training split; `finetune --full` goes on"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="the highest learning rate of the weights")
    parser.add_argument("--distill", action="store_true", help="learn from the dense model's predictions, too")
    arguments.add_calibration(parser)
    add_logger(parser)
    arguments.add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Learn a structure, and save the smaller model; every argument is checked before anything long begins."""
    from lowrank_vit.compression.recipes import FULL_FORMS

    with unfinished(args.out) as folder:
        arguments.check_out(args)
        _run(args, FULL_FORMS[args.method], _size(args), folder)


def check(args: argparse.Namespace) -> None:
    """Raise ``InputError`` for a method that learns nothing on labelled images."""
    from lowrank_vit.compression.recipes import FULL_FORMS

    if args.method not in FULL_FORMS:
        raise unknown("method", args.method, FULL_FORMS)
    _size(args)
    check_new(args)


def _size(args: argparse.Namespace) -> Size:
    """Return the size that was asked for. Raises ``InputError`` for one that is not of the parameters."""
    if args.budget is None:
        return float(args.reduction)
    budget = parse_budget(args.budget)
    if budget.cost != PARAMETERS:
        raise InputError(f"--budget {args.budget}: while training, parameters are aimed at, as in --budget params=0.6")
    return budget


def _run(args: argparse.Namespace, recipe: "Recipe", size: Size, folder: Path) -> None:
    from lowrank_vit.cli.summary import summarise
    from lowrank_vit.compression import save as saving
    from lowrank_vit.compression.budget import check_budget
    from lowrank_vit.compression.compress import compress
    from lowrank_vit.compression.learn import learn, target_share
    from lowrank_vit.records.budgets import budget_of
    from lowrank_vit.runtime.processes import is_first

    training: dict[str, Any] = {"hardware": arguments.lightning_hardware(args), "checkpoint_dir": folder / "gates"}
    model, model_args = arguments.named_model(args)
    check_budget(model, recipe, size)
    data, dense = arguments.calibration_data(args, model), copy.deepcopy(model)
    training |= {"epochs": args.epochs, "lr": args.learning_rate, "teacher": dense if args.distill else None}
    both = {"seed": args.seed, "progress": is_first()}
    learnt = learn(model, data, recipe, 1 - target_share(model, size), loggers=chosen_logger(args), **training, **both)
    compressed, report = compress(
        model,
        arguments.calibration_images(data),
        recipe,
        budget=budget_of(size),
        held_out=arguments.held_out_images(data),
        learnt=learnt,
        device=args.device,
        checkpoint_dir=folder,
        **both,
    )
    if is_first():
        saving.save(compressed, args.out, report, model_args=model_args)
    summarise(dense, compressed, args.out, data, progress=is_first(), among="images of the training")
