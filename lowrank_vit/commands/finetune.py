"""``finetune``: a compressed model, trained in part or in full."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lowrank_vit.commands.arguments import add_data, image_data, lightning_accelerator
from lowrank_vit.commands.training import add_folders, dense_model, save_trained, untrained
from lowrank_vit.commands.unfinished import unfinished


def add_parser(verbs: Any) -> None:
    """The verb's arguments."""
    parser = verbs.add_parser("finetune", help="train norms, biases, head and patch embedding (the paper's 20 epochs)")
    add_folders(parser)
    add_data(parser)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--distill", action="store_true", help="towards the dense model's predictions")
    parser.add_argument("--full", action="store_true", help="train all parameters")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """``finetune``: the paper's partial fine-tune of a compressed model, or all of it."""
    with unfinished(args.out) as folder:
        _run(args, folder)


def _run(args: argparse.Namespace, folder: Path) -> None:
    from lowrank_vit.finetune import fit
    from lowrank_vit.parallel import layout

    accelerator, (devices, num_nodes) = lightning_accelerator(args), layout()
    model, report = untrained(args, "fine-tune")
    teacher = dense_model(args, report) if args.distill else None
    tuned = fit(
        model,
        image_data(args, model),
        checkpoint_dir=folder,
        epochs=args.epochs,
        lr=args.learning_rate,
        devices=devices,
        num_nodes=num_nodes,
        accelerator=accelerator,
        seed=args.seed,
        teacher=teacher,
        full=args.full,
    )
    report = {**report, "protocol": tuned.protocol, "finetune": tuned.describe()}
    save_trained(args, tuned.model, report)
    print(f"trained {100 * report['finetune']['trainable_share']:.2f} % of the parameters; saved to {args.out}")
