"""Measurements of untrained stand-ins."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES
from experiments.jobs.memory import DigitsInMemory
from lowrank_vit.models import STANDINS

STEPS = 20  # of Z's gradient solvers


def dense(name: str = "digits_deit_small") -> nn.Module:
    """Untrained, with weights large enough that every layer matters."""
    torch.manual_seed(0)
    assert name in STANDINS
    model = timm.create_model(name).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def job_for(measure: str, model: str = "digits_deit_small", seed: int = 0, **fields: Any) -> Job:
    recipe, reduction = ("paper", 0.5) if measure == "compensation" else (None, 0.0)
    fields = {"calibration_samples": 64, "held_out_samples": 32, "limit": 64, "epochs": 0} | fields
    if recipe:
        fields["changes"] = {"solver": "moments", "steps": STEPS} | fields.pop("changes", {})
    return Job(model, True, "digits", "1297+500", recipe, reduction, seed, measure=measure, **fields)


def data_for(model: nn.Module, job: Job) -> DigitsInMemory:
    names = ("calibration_samples", "held_out_samples", "limit", "seed")
    return DigitsInMemory("digits", resolve_model_data_config(model), **{name: getattr(job, name) for name in names})


def run(measure: str, model: nn.Module, job: Job) -> dict[str, Any]:
    """A measurement, whose result survives JSON."""
    said: list[str] = []
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "stages.json", said.append)
        found = MEASURES.get(measure).run(model, data_for(model, job), job, ledger)
    assert said
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found
