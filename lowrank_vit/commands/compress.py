"""``compress``: a model to a folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.commands.arguments import add_data, add_model, image_data
from lowrank_vit.commands.unfinished import unfinished
from lowrank_vit.errors import InputError

if TYPE_CHECKING:
    from lowrank_vit.recipes import Recipe


def add_parser(verbs: Any) -> None:
    """The verb's arguments."""
    parser = verbs.add_parser("compress", help="compress a model and save it to a folder")
    add_model(parser, required=True)
    add_data(parser)
    parser.add_argument("--recipe", default="exact", help="see `list recipes` (default: exact)")
    parser.add_argument(
        "--reduction",
        type=shares,
        required=True,
        metavar="SHARE[,SHARE...]",
        help="of all parameters to remove, e.g. 0.5; of several, each goes to its own folder in --out",
    )
    parser.add_argument("--calibration-samples", type=int, default=1024)
    parser.add_argument("--held-out-samples", type=int, default=256, help="unseen images for the error report; 0: none")
    parser.add_argument("--stratified", action="store_true", help="draw the calibration images evenly over the classes")
    parser.add_argument("--sites", metavar="REGEX", help="names of the linear layers (default: all in blocks)")
    parser.add_argument(
        "--solver", choices=("closed_form", "moments", "minibatch"), help="of Z (default: the recipe's)"
    )
    parser.add_argument("--steps", type=int, help="of the gradient solvers (default: the recipe's)")
    parser.add_argument("--rank-multiple", type=int, help="ranks are multiples of this (default: the recipe's, 1)")
    parser.add_argument(
        "--nested", action="store_true", help="keep all factors, so that `shrink` can take other sizes out"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep a finished model in --out (an unfinished one always goes on)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.set_defaults(run=run)


def shares(text: str) -> dict[str, float]:
    """Numbers by how they were written, which names their folders."""
    return {part.strip(): float(part) for part in text.split(",")}


def run(args: argparse.Namespace) -> None:
    """``compress``: every argument is checked before anything long begins."""
    from lowrank_vit import storage
    from lowrank_vit.nested import check_nestable
    from lowrank_vit.parallel import agreed
    from lowrank_vit.recipes import get_recipe
    from lowrank_vit.steps import resolve_device

    recipe = get_recipe(args.recipe).but(solver=args.solver, steps=args.steps, rank_multiple=args.rank_multiple)
    resolve_device(args.device)
    folders = {args.out / name if len(args.reduction) > 1 else args.out: r for name, r in args.reduction.items()}
    if args.nested:
        check_nestable(recipe)
        if len(folders) > 1:
            raise InputError(
                "a nested folder holds all sizes: give it one --reduction, and take others out by `shrink`"
            )
    with unfinished(args.out, tuple(folders)) as folder:
        for done in [out for out in folders if args.resume and agreed(_finished(out, args.nested))]:
            print(f"{done} is finished already")
            del folders[done]
        for out in folders:
            storage.check_free(out)
        if folders:
            _compress(args, recipe, folders, folder)


def _finished(folder: Path, nested: bool) -> bool:
    from lowrank_vit import storage

    return storage.is_saved_model(folder) and (not nested or storage.nested_entry(folder) is not None)


def _compress(args: argparse.Namespace, recipe: Recipe, folders: Mapping[Path, float], meanwhile: Path) -> None:
    from lowrank_vit import artefact, storage
    from lowrank_vit.models import load_model
    from lowrank_vit.parallel import is_first
    from lowrank_vit.pipeline import analyse, check_reduction
    from lowrank_vit.steps import Images
    from lowrank_vit.view import show_report

    model = load_model(args.model, args.checkpoint)
    data = image_data(
        args,
        model,
        calibration_samples=args.calibration_samples,
        held_out_samples=args.held_out_samples or 1,  # none are looked at then
        stratified=args.stratified,
    )
    calibration = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
    held_out = Images(data.held_out_dataloader(), data.held_out_fingerprint) if args.held_out_samples else None
    options = {} if args.sites is None else {"sites": args.sites}
    for reduction in folders.values():
        check_reduction(model, recipe, reduction, **options)
    analysis = analyse(
        model,
        calibration,
        recipe,
        held_out=held_out,
        seed=args.seed,
        device=args.device,
        progress=is_first(),
        checkpoint_dir=meanwhile,
        **options,
    )
    for folder, reduction in folders.items():
        compressed, report = analysis.compress(reduction)
        if is_first():
            artefact.save(compressed, folder, report, nested=analysis if args.nested else None)
            show_report(report, storage.file_bytes(folder), storage.nested_entry(folder))
            print(f"saved to {folder}")
