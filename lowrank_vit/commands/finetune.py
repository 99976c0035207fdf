"""``finetune``: a compressed model, trained in part."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from lowrank_vit.commands.arguments import add_data, image_data
from lowrank_vit.errors import InputError


def add_parser(verbs: Any) -> None:
    """The verb's arguments."""
    parser = verbs.add_parser("finetune", help="train norms, biases, head and patch embedding (the paper's 20 epochs)")
    parser.add_argument("folder", type=Path, metavar="DIR")
    add_data(parser)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--distill", action="store_true", help="towards the dense model's predictions")
    parser.add_argument("--teacher-checkpoint", type=Path, metavar="FILE", help="the dense weights (default: the hub)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """``finetune``: the paper's partial fine-tune of a compressed model."""
    from lowrank_vit import storage
    from lowrank_vit.finetune import fit
    from lowrank_vit.models import load_model
    from lowrank_vit.steps import resolve_device

    device = resolve_device(args.device)
    storage.check_free(args.out)
    model, report = storage.load(args.folder), storage.load_report(args.folder)
    if "quantization" in report:
        raise InputError(f"{args.folder} is quantised: fine-tune the folder that it was made from, then quantise that")
    teacher = load_model(report["model"], args.teacher_checkpoint) if args.distill else None
    data = image_data(args, model)
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
    storage.save(tuned.model.cpu(), args.out, report, model_args=storage.load_model_args(args.folder))
    shutil.rmtree(unfinished, ignore_errors=True)
    print(f"trained {100 * report['finetune']['trainable_share']:.2f} % of the parameters; saved to {args.out}")
