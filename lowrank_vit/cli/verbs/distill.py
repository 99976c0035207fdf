"""``distill``: train a compressed model towards the dense one on the calibration images."""

import argparse
from pathlib import Path

from lowrank_vit.cli.arguments import add_data, image_data, lightning_hardware
from lowrank_vit.cli.train_folder import add_folders, add_logger, chosen_logger, dense_model, save_trained, untrained
from lowrank_vit.cli.unfinished import unfinished

HELP = "train all factors towards the dense model, on a few unlabelled images"
EXAMPLE = "small --data imagefolder:PATH --epochs 2 --out distilled"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_folders(parser)
    add_data(parser)
    parser.set_defaults(batch_size=20)
    parser.add_argument("--calibration-samples", type=int, default=1000, help="images to train on")
    parser.add_argument("--held-out-samples", type=int, help="unseen images for the divergence; 0: none (default: 256)")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the calibration images")
    parser.add_argument(
        "--optimizer", choices=("adamw", "muon"), default="adamw", help="what takes the steps of matrices"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="learning rate of matrices")
    parser.add_argument("--vector-learning-rate", type=float, default=3e-3, help="learning rate of biases and norms")
    parser.add_argument("--mix", type=float, default=0.0, help="largest share of another image mixed into each")
    add_logger(parser)


def run(args: argparse.Namespace) -> None:
    """Train all parameters of a compressed model towards the dense model's logits and features."""
    with unfinished(args.out) as folder:
        _run(args, folder)


def _run(args: argparse.Namespace, folder: Path) -> None:
    from lowrank_vit.stages.training.distill import distill
    from lowrank_vit.stages.training.teacher import augmentations

    hardware = lightning_hardware(args)
    model, report = untrained(args, "distil")
    teacher = dense_model(args)
    data = image_data(args, model, calibration_samples=args.calibration_samples, held_out_samples=args.held_out_samples)
    trained = distill(
        model,
        teacher,
        data.calibration_tensor(),
        held_out=data.held_out_tensor() if data.holds_out else None,
        loggers=chosen_logger(args),
        checkpoint_dir=folder,
        epochs=args.epochs,
        optimizer=args.optimizer,
        lr=args.learning_rate,
        vector_lr=args.vector_learning_rate,
        batch_size=args.batch_size,
        mix=args.mix,
        **augmentations(data.source.mirrors),
        hardware=hardware,
        seed=args.seed,
    )
    entry = {**trained.describe(), "calibration": data.calibration_record}
    report = {**report, "protocol": trained.protocol, "distillation": entry}
    save_trained(args, trained.model, report)
    if "kept" in entry:
        print(f"the weights from before were better and are kept; saved to {args.out}")
        return
    name, unit = trained.objective.measures, trained.objective.unit
    unseen = entry[f"{name}_held_out"]
    seen = "" if unseen is None else f", on unseen images {unseen['before']:.4f} -> {unseen['after']:.4f}"
    line = f"divergence from the dense model in {unit}: {entry[f'train_{name}']:.4f} in training{seen}"
    print(f"{line}; saved to {args.out}")
