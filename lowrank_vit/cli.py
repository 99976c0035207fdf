"""The commands. Each verb imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from lowrank_vit.data import ImageData


def _add_model(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--model", required=required, metavar="TIMM_NAME", help="a timm model, or an embedded stand-in")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="its weights, .safetensors (default: timm's hub)"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, metavar="SPEC", help="digits | imagefolder:PATH | parquet:PATH | arrow:PATH | hf:NAME"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, help="processes that read images (default: by the data)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")


def _compress_parser(verbs: Any) -> None:
    parser = verbs.add_parser("compress", help="compress a model and save it to a folder")
    _add_model(parser, required=True)
    _add_data(parser)
    parser.add_argument("--recipe", default="exact", help="see `list recipes` (default: exact)")
    parser.add_argument("--reduction", type=float, required=True, help="share of all parameters to remove, e.g. 0.5")
    parser.add_argument("--calibration-samples", type=int, default=1024)
    parser.add_argument("--held-out-samples", type=int, default=256, help="unseen images for the error report; 0: none")
    parser.add_argument("--stratified", action="store_true", help="draw the calibration images evenly over the classes")
    parser.add_argument("--sites", metavar="REGEX", help="names of the linear layers (default: all in blocks)")
    parser.add_argument(
        "--solver", choices=("closed_form", "moments", "minibatch"), help="of Z (default: the recipe's)"
    )
    parser.add_argument("--steps", type=int, help="of the gradient solvers (default: the recipe's)")
    parser.add_argument("--rank-multiple", type=int, help="ranks are multiples of this (default: the recipe's, 1)")
    parser.add_argument("--resume", action="store_true", help="keep a finished model in --out; reuse cached statistics")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.set_defaults(run=run_compress)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lowrank_vit", description="Smaller vision transformers by low rank.")
    parser.add_argument("--verbose", action="store_true", help="say more on the error stream")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _compress_parser(verbs)

    evaluate = verbs.add_parser("evaluate", help="top-1, top-5 and loss of a compressed or a dense model")
    evaluate.add_argument("folder", nargs="?", type=Path, metavar="DIR")
    _add_model(evaluate, required=False)
    _add_data(evaluate)
    evaluate.add_argument("--split", choices=("train", "validation"), default="validation")
    evaluate.add_argument("--limit", type=int, help="evaluate this many images, drawn by the seed")
    evaluate.add_argument("--devices", type=int, default=1)
    evaluate.add_argument("--json", action="store_true")
    evaluate.set_defaults(run=run_evaluate)

    finetune = verbs.add_parser(
        "finetune", help="train norms, biases, head and patch embedding (the paper's 20 epochs)"
    )
    finetune.add_argument("folder", type=Path, metavar="DIR")
    _add_data(finetune)
    finetune.add_argument("--epochs", type=int, default=20)
    finetune.add_argument("--learning-rate", type=float, default=1e-4)
    finetune.add_argument("--devices", type=int, default=1)
    finetune.add_argument("--distill", action="store_true", help="towards the dense model's predictions")
    finetune.add_argument(
        "--teacher-checkpoint", type=Path, metavar="FILE", help="the dense weights (default: the hub)"
    )
    finetune.add_argument("--out", type=Path, required=True, metavar="DIR")
    finetune.set_defaults(run=run_finetune)

    inspect = verbs.add_parser("inspect", help="what a compressed model's folder holds")
    inspect.add_argument("folder", type=Path, metavar="DIR")
    inspect.add_argument("--json", action="store_true")
    inspect.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw ranks, errors and Algorithm 1's way to them (.png)"
    )
    inspect.set_defaults(run=run_inspect)

    listing = verbs.add_parser("list", help="what can be chosen from")
    listing.add_argument("kind", choices=("models", "recipes", "decompositions", "allocators", "compensations"))
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=run_list)
    return parser


def _data(args: argparse.Namespace, model: nn.Module, **options: Any) -> ImageData:
    from timm.data import resolve_model_data_config

    from lowrank_vit.data import ImageData

    return ImageData(
        args.data,
        resolve_model_data_config(model),
        batch_size=args.batch_size,
        workers=args.workers,
        seed=args.seed,
        **options,
    )


def run_compress(args: argparse.Namespace) -> None:
    """``compress``: every argument is checked before anything long begins."""
    from lowrank_vit import storage
    from lowrank_vit.models import load_model
    from lowrank_vit.pipeline import compress
    from lowrank_vit.recipes import get_recipe
    from lowrank_vit.steps import Images, resolve_device
    from lowrank_vit.view import show_report

    recipe = get_recipe(args.recipe).but(solver=args.solver, steps=args.steps, rank_multiple=args.rank_multiple)
    resolve_device(args.device)
    if args.resume and storage.is_saved_model(args.out):
        print(f"{args.out} is finished already")
        return
    storage.check_free(args.out)
    model = load_model(args.model, args.checkpoint)
    data = _data(
        args,
        model,
        calibration_samples=args.calibration_samples,
        held_out_samples=args.held_out_samples or 1,  # none are looked at then
        stratified=args.stratified,
    )
    calibration = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
    held_out = Images(data.held_out_dataloader(), data.held_out_fingerprint) if args.held_out_samples else None
    options = {} if args.sites is None else {"sites": args.sites}
    compressed, report = compress(
        model,
        calibration,
        recipe,
        args.reduction,
        held_out=held_out,
        seed=args.seed,
        device=args.device,
        progress=True,
        **options,
    )
    storage.save(compressed, args.out, report)
    show_report(report)
    print(f"saved to {args.out}")


def run_evaluate(args: argparse.Namespace) -> None:
    """``evaluate``: a folder, or a dense model by name."""
    from lowrank_vit import storage
    from lowrank_vit.evaluate import evaluate
    from lowrank_vit.models import load_model
    from lowrank_vit.steps import resolve_device

    if (args.folder is None) == (args.model is None):
        raise InputError("evaluate takes either DIR or --model TIMM_NAME")
    device = resolve_device(args.device)
    model = storage.load(args.folder) if args.folder else load_model(args.model, args.checkpoint)
    data = _data(args, model, limit=args.limit, evaluation_split=args.split)
    accelerator = "gpu" if device.type == "cuda" else device.type
    result = evaluate(model, data, devices=args.devices, accelerator=accelerator)
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"top-1 {result['top1']:.2f} %   top-5 {result['top5']:.2f} %   "
            f"loss {result['loss']:.4f}   n {result['n']} ({args.data}, {args.split})"
        )


def run_finetune(args: argparse.Namespace) -> None:
    """``finetune``: the paper's partial fine-tune of a compressed model."""
    from lowrank_vit import storage
    from lowrank_vit.finetune import fit
    from lowrank_vit.models import load_model
    from lowrank_vit.steps import resolve_device

    device = resolve_device(args.device)
    storage.check_free(args.out)
    model, report = storage.load(args.folder), storage.load_report(args.folder)
    teacher = load_model(report["model"], args.teacher_checkpoint) if args.distill else None
    data = _data(args, model)
    accelerator = "gpu" if device.type == "cuda" else device.type
    unfinished = args.out.with_name(f".{args.out.name}.unfinished")
    tuned = fit(
        model,
        data,
        checkpoint_dir=unfinished,  # an interrupted run goes on from its last whole epoch
        epochs=args.epochs,
        lr=args.learning_rate,
        devices=args.devices,
        accelerator=accelerator,
        seed=args.seed,
        teacher=teacher,
    )
    report = {**report, "protocol": "partial-ft", "finetune": tuned.describe()}
    storage.save(tuned.model.cpu(), args.out, report)
    shutil.rmtree(unfinished, ignore_errors=True)
    print(f"trained {100 * report['finetune']['trainable_share']:.2f} % of the parameters; saved to {args.out}")


def run_inspect(args: argparse.Namespace) -> None:
    """``inspect``: the report of a folder."""
    from lowrank_vit import storage
    from lowrank_vit.view import show_report

    storage.load(args.folder)
    report = storage.load_report(args.folder)
    if args.plot:
        if args.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise InputError(f"cannot draw {args.plot.name!r}: end its name in .png, .pdf or .svg")
        from lowrank_vit.plot import plot_report

        plot_report(report, args.plot)
    if args.json:
        print(json.dumps(report))
    else:
        show_report(report)


def run_list(args: argparse.Namespace) -> None:
    """``list``: names, one a line."""
    from lowrank_vit.listing import listing

    entries = listing(args.kind)
    if args.json:
        print(json.dumps(list(entries)))
        return
    width = max(map(len, entries))
    for name, about in entries.items():
        print(f"{name:{width}}  {about}".rstrip())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake is one line on the error stream and exit code 2."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s", stream=sys.stderr
    )
    try:
        args.run(args)
    except InputError as error:
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
