"""``finetune``: train a compressed model, partially or fully."""

import argparse
from pathlib import Path

from lowrank_vit.cli.arguments import add_data, image_data, lightning_hardware
from lowrank_vit.cli.train_folder import add_folders, add_logger, chosen_logger, dense_model, save_trained, untrained
from lowrank_vit.cli.unfinished import check_new, unfinished
from lowrank_vit.runtime.errors import InputError

HELP = "train norms, biases, head and patch embedding (the paper's 20 epochs)"
EXAMPLE = "small --data imagefolder:PATH --epochs 20 --out tuned"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_folders(parser)
    add_data(parser)
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training split")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="the highest learning rate")
    parser.add_argument("--distill", action="store_true", help="learn from the dense model's predictions, too")
    parser.add_argument("--hard-teacher", action="store_true", help="with --distill: towards its answers alone")
    parser.add_argument(
        "--align-weight", type=float, default=0.0, help="with --distill: of the first and last blocks' outputs"
    )
    parser.add_argument("--full", action="store_true", help="train all parameters")
    add_logger(parser)


def check(args: argparse.Namespace) -> None:
    """Raise ``InputError`` for what learns from the dense model without ``--distill``, and where ``--out`` is taken."""
    if (args.hard_teacher or args.align_weight) and not args.distill:
        raise InputError("--hard-teacher and --align-weight imitate the dense model: give --distill with them")
    check_new(args)


def run(args: argparse.Namespace) -> None:
    """Fine-tune a compressed model as in the paper, or all of its parameters."""
    with unfinished(args.out) as folder:
        _run(args, folder)


def _run(args: argparse.Namespace, folder: Path) -> None:
    from lowrank_vit.stages.training.finetune import finetune

    hardware = lightning_hardware(args)
    model, report = untrained(args, "fine-tune")
    teacher = dense_model(args) if args.distill else None
    tuned = finetune(
        model,
        image_data(args, model),
        loggers=chosen_logger(args),
        checkpoint_dir=folder,
        epochs=args.epochs,
        lr=args.learning_rate,
        hardware=hardware,
        seed=args.seed,
        teacher=teacher,
        full=args.full,
        hard_teacher=args.hard_teacher,
        align_weight=args.align_weight,
    )
    report = {**report, "protocol": tuned.protocol, "finetune": tuned.describe()}
    save_trained(args, tuned.model, report)
    print(f"trained {100 * report['finetune']['trainable_share']:.2f} % of the parameters; saved to {args.out}")
