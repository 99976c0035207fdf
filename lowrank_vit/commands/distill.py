"""``distill``: a compressed model, trained towards the dense one on the calibration images."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from lowrank_vit.commands.arguments import add_data, image_data
from lowrank_vit.errors import InputError


def add_parser(verbs: Any) -> None:
    """The verb's arguments."""
    parser = verbs.add_parser("distill", help="train all factors towards the dense model, on a few unlabelled images")
    parser.add_argument("folder", type=Path, metavar="DIR")
    add_data(parser)
    parser.set_defaults(batch_size=20)
    parser.add_argument("--teacher-checkpoint", type=Path, metavar="FILE", help="the dense weights (default: the hub)")
    parser.add_argument("--calibration-samples", type=int, default=1000)
    parser.add_argument("--held-out-samples", type=int, default=256, help="unseen images for the divergence; 0: none")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1.5e-4)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """``distill``: all parameters of a compressed model, by the dense model's logits and features."""
    from lowrank_vit import storage
    from lowrank_vit.distill import PROTOCOL, distill
    from lowrank_vit.models import load_model
    from lowrank_vit.steps import resolve_device

    device = resolve_device(args.device)
    storage.check_free(args.out)
    model, report = storage.load(args.folder), storage.load_report(args.folder)
    if "quantization" in report:
        raise InputError(f"{args.folder} is quantised: distil the folder that it was made from, then quantise that")
    teacher = load_model(report["model"], args.teacher_checkpoint)
    data = image_data(
        args,
        model,
        calibration_samples=args.calibration_samples,
        held_out_samples=args.held_out_samples or 1,  # none are looked at then
    )
    unfinished = args.out.with_name(f".{args.out.name}.unfinished")
    trained = distill(
        model,
        teacher,
        data.calibration_tensor(),
        held_out=data.held_out_tensor() if args.held_out_samples else None,
        checkpoint_dir=unfinished,  # an interrupted run goes on from its last whole epoch
        epochs=args.epochs,
        lr=args.learning_rate,
        batch_size=args.batch_size,
        flips=data.source.mirrors,
        devices=args.devices,
        accelerator="gpu" if device.type == "cuda" else device.type,
        seed=args.seed,
    )
    entry = {**trained.describe(), "calibration": data.calibration_record}
    report = {**report, "protocol": PROTOCOL, "distillation": entry}
    storage.save(trained.model.cpu(), args.out, report, model_args=storage.load_model_args(args.folder))
    shutil.rmtree(unfinished, ignore_errors=True)
    unseen = entry["kl_held_out"]
    seen = "" if unseen is None else f", on unseen images {unseen['before']:.4f} -> {unseen['after']:.4f}"
    print(f"divergence from the dense model in nats: {entry['train_kl']:.4f} in training{seen}; saved to {args.out}")
