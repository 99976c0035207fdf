"""``compress``: compress a model and save it to a folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.cli import arguments
from lowrank_vit.cli.recipe_file import recipe_from
from lowrank_vit.cli.unfinished import check_new, unfinished
from lowrank_vit.records.budgets import Size, budgets_of, parse_budgets
from lowrank_vit.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from lowrank_vit.compression.analysis import Analysis
    from lowrank_vit.compression.recipe import Recipe
    from lowrank_vit.data import ImageData
    from lowrank_vit.records.report import Report


EMBEDDINGS: dict[bool | None, dict[str, Any]] = {  # what --embeddings, or its opposite, changes
    True: {"patches": "two_sided", "positions": "kronecker"},
    False: {"patches": False, "positions": False},
}


HELP = "compress a model and save it to a folder"
EXAMPLE = "--model deit_tiny_patch16_224.fb_in1k --data imagefolder:PATH --reduction 0.4 --out small"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_model(parser, required=True)
    arguments.add_data(parser)
    parser.add_argument(
        "--recipe",
        default="best",
        help="see `list recipes`; or a report.json, which repeats what made it, or a TOML of these options",
    )
    _add_size(parser)
    arguments.add(parser, "--compile", "--runtime")
    arguments.add_calibration(parser)
    arguments.add(parser, "--sites")
    _add_solver(parser)
    _add_savings(parser)
    parser.add_argument(
        "--nested", action="store_true", help="keep all directions, so that `shrink` can extract any smaller size"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="leave a finished model in --out as it is (an unfinished one is always resumed)",
    )
    arguments.add_out(parser)


def _add_size(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--reduction",
        type=arguments.shares,
        metavar="SHARE[,SHARE...]",
        help="share of all parameters to remove, e.g. 0.5; several sizes go to folders of their own in --out",
    )
    arguments.add(size, "--budget")
    parser.add_argument(
        "--max-loss",
        type=float,
        metavar="POINTS",
        help="find the smallest model that loses at most so many points of top-1 on the held-out images, e.g. 1.0 (without "
        "labels: of agreement with the dense model; without a classifier: percent of the features' variance); beside a "
        "size, one that keeps within both",
    )


def _add_savings(parser: argparse.ArgumentParser) -> None:
    """Add what saves parameters, bits or tokens, beside the units of blocks or together with their sizes."""
    parser.add_argument(
        "--pivoted",
        action=argparse.BooleanOptionalAction,
        help="store no identity in pairs of factors: more ranks for the same parameters, and more multiply-accumulates "
        "(default: the recipe's; best does under a budget of params or bytes)",
    )
    parser.add_argument(
        "--folded",
        action=argparse.BooleanOptionalAction,
        help="fold norms' scales and shifts, and LayerScale, into linear layers: fewer parameters of the same function "
        "(default: the recipe's; best does)",
    )
    parser.add_argument(
        "--embeddings",
        action=argparse.BooleanOptionalAction,
        help="give patch and position embeddings a rank, too, under the same budget (default: the recipe's; best does)",
    )
    parser.add_argument(
        "--bits",
        type=arguments.whole_numbers,
        metavar="B[,B...]",
        help="choose the bits of each layer from these, 2 to 8, together with the sizes; needs --budget bytes=...",
    )
    parser.add_argument(
        "--tokens",
        choices=("auto", "none"),
        help="merge tokens, too, as far as that serves the held-out images, under --budget macs=... or latency=..., or not "
        "(default: the recipe's; best merges where the model allows it)",
    )


def _add_solver(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--solver", choices=("closed_form", "moments", "minibatch"), help="how Z is fitted (default: the recipe's)"
    )
    parser.add_argument(
        "--optimizer",
        choices=("adam", "sgd"),
        help="optimiser of Z's gradient solvers; sgd is the paper's plain gradient descent (default: the recipe's, adam)",
    )
    parser.add_argument("--steps", type=int, help="steps of Z's gradient solvers (default: the recipe's)")
    parser.add_argument("--rank-multiple", type=int, help="make ranks multiples of this (default: the recipe's, 1)")


def check(args: argparse.Namespace) -> None:
    """Raise ``InputError`` for sizes that cannot be measured or written, before PyTorch is imported."""
    if args.held_out_samples == 0 and args.max_loss is not None:
        raise InputError("--max-loss is measured on unseen images: give --held-out-samples")
    if args.max_loss is not None and (args.bits is not None or args.tokens is not None or len(_wanted(args)) > 1):
        raise InputError("--max-loss finds one size of units: give at most one size, without --bits and --tokens")
    if args.reduction is None and args.budget is None and args.max_loss is None:
        raise InputError("how small is the model to be? give --reduction, --budget or --max-loss")
    if not args.resume and len(_wanted(args)) == 1:
        check_new(args)


def run(args: argparse.Namespace) -> None:
    """Compress a model; every argument is checked before anything long begins."""
    from lowrank_vit.compression.nested import check_nestable
    from lowrank_vit.runtime.hardware import resolve_device
    from lowrank_vit.runtime.processes import agreed
    from lowrank_vit.storage import folder as storage

    names = ("solver", "optimizer", "steps", "rank_multiple", "pivoted", "folded")
    changes: dict[str, Any] = {name: getattr(args, name) for name in names} | EMBEDDINGS.get(args.embeddings, {})
    if args.tokens is not None or args.nested:
        changes["tokens"] = args.tokens == "auto"
    recipe = recipe_from(args.recipe).but(**changes)
    resolve_device(args.device)
    wanted = _wanted(args)
    folders = {args.out / name if len(wanted) > 1 else args.out: size for name, size in wanted.items()}
    _check_together(args, recipe, wanted)
    if args.nested:
        check_nestable(recipe)
        if len(folders) > 1:
            raise InputError("a nested folder holds every size: give one size here, and take out others with `shrink`")
    with unfinished(args.out, tuple(folders)) as folder:
        for done in [out for out in folders if args.resume and agreed(_finished(out, args.nested))]:
            size = folders.pop(done)
            _check_same(done, recipe, size if args.max_loss is None else None)
            print(f"{done} is finished already")
        for out in folders:
            storage.check_free(out, "choose another --out, or --resume to keep a finished model")
        if folders:
            _compress(args, recipe, folders, folder)


def _check_together(args: argparse.Namespace, recipe: Recipe, wanted: Mapping[str, Size | None]) -> None:
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


def _wanted(args: argparse.Namespace) -> dict[str, Size | None]:
    """Return the sizes that are asked for, by their text; None where ``--max-loss`` is to find it."""
    if args.budget is not None:
        return dict(parse_budgets(args.budget))
    return {"": None} if args.reduction is None else dict(args.reduction)


def _finished(folder: Path, nested: bool) -> bool:
    from lowrank_vit.storage import folder as storage

    return storage.is_saved_model(folder) and (not nested or storage.nested_entry(folder) is not None)


def _check_same(folder: Path, recipe: Recipe, size: Size | None) -> None:
    """Raise ``InputError`` where a finished folder has another recipe or size than is asked for; None: is to be found."""
    from lowrank_vit.storage import folder as storage

    report = storage.load_report(folder)
    named = report["fallback"]["asked"] if "fallback" in report else report["recipe"]
    budgets = [report["budget"], *report["budget"].get("also", ())] if "budget" in report else []
    made = (named, ",".join(each["asked"] for each in budgets) or None)
    wanted = (recipe.name, None if size is None else str(budgets_of(size)))
    if made[0] != wanted[0] or (None not in (made[1], wanted[1]) and made[1] != wanted[1]):
        raise InputError(f"{folder} was made by {' to '.join(filter(None, made))}: choose another --out")


def _compress(args: argparse.Namespace, recipe: Recipe, folders: Mapping[Path, Size | None], meanwhile: Path) -> None:
    from lowrank_vit.cli.summary import summarise
    from lowrank_vit.compression import save as saving
    from lowrank_vit.compression.budget import check_budget
    from lowrank_vit.compression.compress import analyse
    from lowrank_vit.compression.find import find_units
    from lowrank_vit.compression.nested import check_nestable, with_sizes
    from lowrank_vit.runtime.processes import is_first

    model, model_args = arguments.named_model(args)
    data = arguments.calibration_data(args, model)
    options = arguments.chosen_sites(args)
    for size in folders.values():
        if size is not None and args.bits is None:
            check_budget(model, recipe, size, **options)
    if args.nested:
        found = find_units(model, recipe, **options)
        check_nestable(found.recipe, found.units)
    analysis = analyse(
        model,
        arguments.calibration_images(data),
        recipe,
        held_out=arguments.held_out_images(data),
        seed=args.seed,
        device=args.device,
        progress=is_first(),
        checkpoint_dir=meanwhile,
        batch_size=args.batch_size,
        runtime="compile" if args.compile else args.runtime,
        **options,
    )
    for folder, size in folders.items():
        compressed, report = _made(args, analysis, data, size)
        nested = with_sizes(analysis, report.get("budget")) if args.nested else None  # by all processes together
        if is_first():
            saving.save(compressed, folder, report, model_args=model_args, nested=nested)
        summarise(analysis.model, compressed, folder, data, progress=analysis.services.progress)


def _made(args: argparse.Namespace, analysis: Analysis, data: ImageData, size: Size | None) -> tuple[nn.Module, Report]:
    """Make the model of a size, or the smallest one by ``--max-loss``."""
    from lowrank_vit.compression.compress import resized

    if args.max_loss is not None or size is None:
        return _smallest(args, analysis, data, size)
    small, report = resized(analysis, size, args.bits)
    _show_splits(report)
    return small, report


def _show_splits(report: Any) -> None:
    from lowrank_vit.runtime.processes import is_first

    for split in report["shared"]["tried"] if "shared" in report and is_first() else []:
        pairs = ", ".join(map(str, split["pairs"])) if any(split["pairs"]) else "none"
        print(f"pairs merged: {pairs}; {split['parameters']:,} parameters, divergence {split['divergence']:.4g}")


def _smallest(
    args: argparse.Namespace, analysis: Analysis, data: ImageData, within: Size | None
) -> tuple[nn.Module, Report]:
    """Find the smallest model that loses no more than ``--max-loss``, and show what was tried."""
    from lowrank_vit.cli.view import show_trials
    from lowrank_vit.compression.smallest import smallest
    from lowrank_vit.stages.evaluate.accuracy import fitting

    compressed, report, trials = smallest(
        analysis, args.max_loss, fitting(analysis.model, data, data.held_out_dataloader()), within=within
    )
    show_trials(trials, args.max_loss)
    return compressed, report
