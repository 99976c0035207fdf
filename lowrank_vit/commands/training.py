"""What ``finetune`` and ``distill`` do alike: a folder is taken, trained, and saved as another."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def add_folders(parser: argparse.ArgumentParser) -> None:
    """DIR and ``--out``, and where the dense weights are."""
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--teacher-checkpoint", type=Path, metavar="FILE", help="the dense weights (default: the hub)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")


def untrained(args: argparse.Namespace, verb: str) -> tuple[nn.Module, dict[str, Any]]:
    """The model in DIR and its report. Raises ``InputError`` where ``--out`` is taken, and for a quantised model."""
    from lowrank_vit import storage

    storage.check_free(args.out)
    model, report = storage.load(args.folder), storage.load_report(args.folder)
    if "quantization" in report:
        raise InputError(f"{args.folder} is quantised: {verb} the folder that it was made from, then quantise that")
    return model, report


def dense_model(args: argparse.Namespace, report: Mapping[str, Any]) -> nn.Module:
    """The teacher: the dense model that the folder was made from."""
    from lowrank_vit.models import load_model

    return load_model(report["model"], args.teacher_checkpoint)


def save_trained(args: argparse.Namespace, model: nn.Module, report: Mapping[str, Any]) -> None:
    """Write ``--out``; one process does."""
    from lowrank_vit import storage
    from lowrank_vit.parallel import is_first

    if is_first():
        storage.save(model.cpu(), args.out, report, model_args=storage.load_model_args(args.folder))
