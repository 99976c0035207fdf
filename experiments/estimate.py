"""How long jobs will take: from what finished jobs took, else from forward passes and the time of one batch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from experiments.registry import Job
from experiments.results import RESULT, read_json
from experiments.run import Task
from lowrank_vit.measured import IMAGES

BACKWARD = 2.0  # a backward pass, in forward passes
GRADIENTS = ("two_sided", "fwsvd")  # decompositions whose statistics need a backward pass
DISTILLED = 20  # images of a step of distillation
MEASURED = 18  # forward passes: three parts of each of a dozen blocks, from that block on
STEP, JOB = 4e-3, 1.0  # seconds of overhead for a training step, and for a job
BATCH = 64


def kind(job: Job) -> tuple[str | None, bool, str]:
    """Jobs of one kind take about as long: recipe, whether they are fine-tuned, images."""
    measure = job.measure or ""
    return (
        job.recipe,
        job.epochs > 0,
        f"{job.model} {job.images} {job.limit} {job.epochs} {job.full} {job.distill_epochs} {dict(job.changes)} {measure}",
    )


def known_seconds(folder: Path) -> dict[tuple[str | None, bool, str], float]:
    """The mean seconds of the finished jobs of a table, by kind."""
    found: dict[tuple[str | None, bool, str], list[float]] = {}
    for path in sorted(folder.glob(f"jobs/*/{RESULT}")):
        result = read_json(path)
        if result is not None:
            found.setdefault(kind(Job.from_json(result["job"])), []).append(result["seconds"]["total"])
    return {name: fmean(seconds) for name, seconds in found.items()}


def forward_passes(job: Job) -> float:
    """Forward passes of one image that a job takes; a training step counts three."""
    if job.measure is not None:
        from experiments.measures import get_measure

        return get_measure(job.measure).forward_passes(job)
    train, validation = (int(count) for count in job.images.split("+"))
    evaluated = min(job.limit or validation, validation)
    if job.recipe is None:
        return evaluated
    recipe = job.recipe_used()
    gradients = recipe.halves or recipe.decomposition in GRADIENTS
    refit = 2 * job.calibration_samples if recipe.refit else 0  # through the dense and the smaller model
    calibration = job.calibration_samples * (1 + BACKWARD * gradients) + refit
    solving = BATCH * recipe.steps if recipe.compensation and recipe.solver == "minibatch" else 0
    measuring = recipe.measured * MEASURED * IMAGES
    tuning = job.epochs * ((1 + BACKWARD + job.full) * train + evaluated)  # the full one goes through the teacher, too
    distilling = job.distill_epochs * (2 + BACKWARD) * job.calibration_samples  # through the teacher, too
    return calibration + measuring + job.held_out_samples + solving + tuning + distilling + 2 * evaluated


def steps(job: Job) -> int:
    """Training steps of a job, each of which costs its overhead."""
    if job.recipe is None:
        return 0
    recipe = job.recipe_used()
    solving = recipe.steps if recipe.compensation and recipe.solver == "minibatch" else 0
    distilling = job.distill_epochs * job.calibration_samples // DISTILLED
    return solving + distilling + job.epochs * int(job.images.split("+")[0]) // (job.batch_size * job.processes)


def seconds_per_image(model: str, device: str, threads: int | None) -> float:
    """One forward pass of an untrained model of that name, on a batch of 64."""
    import timm
    import torch

    import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
    from lowrank_vit.cost import input_size

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    network = timm.create_model(model, pretrained=False).to(device).eval()
    images = torch.zeros(BATCH, *(input_size(network) or (3, 224, 224)), device=device)
    with torch.inference_mode():
        network(images[:2]).sum().item()
        start = time.perf_counter()
        network(images).sum().item()
    torch.set_num_threads(before)
    return (time.perf_counter() - start) / BATCH


def estimate(tasks: Sequence[Task], device: str, threads: int | None) -> tuple[list[float], str]:
    """Seconds of each task, and what they are taken from."""
    if not tasks:
        return [], ""
    known = known_seconds(tasks[0].folder)
    kinds = [kind(task.job) for task in tasks]
    if all(name in known for name in kinds):
        return [known[name] for name in kinds], "finished jobs"
    models = {task.job.model for task, name in zip(tasks, kinds, strict=True) if name not in known}
    pace = {model: seconds_per_image(model, device, threads) for model in sorted(models)}
    guesses = [known.get(name) or _guess(task.job, pace) for task, name in zip(tasks, kinds, strict=True)]
    return guesses, f"forward passes, and one batch of {BATCH} images timed"


def _guess(job: Job, pace: Mapping[str, float]) -> float:
    return JOB + STEP * steps(job) + pace.get(job.model, 0.0) * forward_passes(job)
