"""``distill``: a compressed model, trained towards the dense one on the calibration images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lowrank_vit.commands.arguments import add_data, image_data, lightning_accelerator
from lowrank_vit.commands.training import add_folders, dense_model, save_trained, untrained
from lowrank_vit.commands.unfinished import unfinished


def add_parser(verbs: Any) -> None:
    """The verb's arguments."""
    parser = verbs.add_parser("distill", help="train all factors towards the dense model, on a few unlabelled images")
    add_folders(parser)
    add_data(parser)
    parser.set_defaults(batch_size=20)
    parser.add_argument("--calibration-samples", type=int, default=1000)
    parser.add_argument("--held-out-samples", type=int, default=256, help="unseen images for the divergence; 0: none")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="of matrices")
    parser.add_argument("--vector-learning-rate", type=float, default=3e-3, help="of biases and normalisation")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """``distill``: all parameters of a compressed model, by the dense model's logits and features."""
    with unfinished(args.out) as folder:
        _run(args, folder)


def _run(args: argparse.Namespace, folder: Path) -> None:
    from lowrank_vit.distill import PROTOCOL, distill
    from lowrank_vit.parallel import layout
    from lowrank_vit.teacher import augmentations

    accelerator, (devices, num_nodes) = lightning_accelerator(args), layout()
    model, report = untrained(args, "distil")
    teacher = dense_model(args, report)
    data = image_data(
        args,
        model,
        calibration_samples=args.calibration_samples,
        held_out_samples=args.held_out_samples or 1,  # none are looked at then
    )
    trained = distill(
        model,
        teacher,
        data.calibration_tensor(),
        held_out=data.held_out_tensor() if args.held_out_samples else None,
        checkpoint_dir=folder,
        epochs=args.epochs,
        lr=args.learning_rate,
        vector_lr=args.vector_learning_rate,
        batch_size=args.batch_size,
        **augmentations(data.source.mirrors),
        devices=devices,
        num_nodes=num_nodes,
        accelerator=accelerator,
        seed=args.seed,
    )
    entry = {**trained.describe(), "calibration": data.calibration_record}
    report = {**report, "protocol": PROTOCOL, "distillation": entry}
    save_trained(args, trained.model, report)
    unseen = entry["kl_held_out"]
    seen = "" if unseen is None else f", on unseen images {unseen['before']:.4f} -> {unseen['after']:.4f}"
    print(f"divergence from the dense model in nats: {entry['train_kl']:.4f} in training{seen}; saved to {args.out}")
