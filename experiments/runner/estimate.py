"""Estimate how long jobs will take: from finished jobs, else from forward passes and the time of one batch."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.jobs.job import Job
from experiments.jobs.passes import BACKWARD, BATCH, compression_passes
from experiments.jobs.results import RESULT, read_json
from experiments.jobs.task import EMBEDDED, Task
from lowrank_vit.runtime.processes import launched_from_outside, own_cores

DISTILLED = 20  # images of a step of distillation
STEP, JOB = 4e-3, 1.0  # seconds of overhead for a training step, and for a job
SELECTED = 10  # epochs of token selectors on calibration images
LOADED = 33  # images, the first of which is not timed


def kind(job: Job) -> tuple[str | None, bool, str]:
    """Name what jobs that take about equally long share: recipe, whether they are fine-tuned, images, what follows."""
    trained = f"{job.epochs} {job.gradual_epochs} {job.full} {job.distill_epochs} {job.processes}"
    after = f"{job.tokens.get('rule', '')} {job.quantizer or ''}"
    return (
        job.recipe,
        job.epochs > 0,
        f"{job.model} {job.images} {job.limit} {trained} {dict(job.changes)} {job.measure or ''} {after}",
    )


def known_seconds(folder: Path) -> dict[tuple[str | None, bool, str], float]:
    """Average the seconds of the finished jobs of a table, by kind."""
    seconds: dict[tuple[str | None, bool, str], list[float]] = {}
    for path in sorted(folder.glob(f"jobs/*/{RESULT}")):
        result = read_json(path)
        if result is not None:
            seconds.setdefault(kind(Job.from_json(result["job"])), []).append(result["seconds"]["total"])
    return {name: fmean(times) for name, times in seconds.items()}


def forward_passes(job: Job) -> float:
    """Count the forward passes of one image that a job takes; a training step counts three."""
    if job.measure is not None:
        from experiments.jobs.measure import MEASURES

        return MEASURES.get(job.measure).forward_passes(job)
    train, validation = (int(count) for count in job.images.split("+"))
    evaluated = min(job.limit or validation, validation)
    if job.recipe is None:
        return evaluated + learnt_images(job) * (2 + BACKWARD)  # through the teacher, too
    tuning = job.trained_epochs * (
        (1 + BACKWARD + job.full) * train + evaluated
    )  # the full one goes through the teacher, too
    distilling = job.distill_epochs * (2 + BACKWARD) * job.calibration_samples  # through the teacher, too
    return compression_passes(job) + job.held_out_samples + tuning + distilling + 2 * evaluated


def learnt_images(job: Job) -> int:
    """Count the images that token selectors are trained on, in all epochs."""
    if not job.learns_tokens:
        return 0
    labelled = job.gradual_epochs * int(job.images.split("+")[0])
    return labelled or SELECTED * job.calibration_samples


def steps(job: Job) -> int:
    """Count the training steps of a job, each of which costs its overhead."""
    if job.recipe is None:
        return learnt_images(job) // (job.batch_size * job.processes)
    recipe = job.recipe_used()
    solving = recipe.steps if recipe.compensation and recipe.solver == "minibatch" else 0
    distilling = job.distill_epochs * job.calibration_samples // DISTILLED
    return solving + distilling + job.trained_epochs * int(job.images.split("+")[0]) // (job.batch_size * job.processes)


def images_loaded(job: Job) -> int:
    """Count the images that a job reads and decodes; those of a minibatch solver and of a distillation stay in memory."""
    train, validation = (int(count) for count in job.images.split("+"))
    evaluated = min(job.limit or validation, validation)
    if job.recipe is None:
        return evaluated + (max(job.gradual_epochs * train, job.calibration_samples) if job.learns_tokens else 0)
    return job.calibration_samples + job.held_out_samples + 2 * evaluated + job.trained_epochs * (train + evaluated)


@dataclass(frozen=True)
class Pace:
    """Hold the seconds that an image takes: a forward pass on one device, and one core to load it."""

    forward: float
    load: float


@dataclass(frozen=True)
class Expected:
    """Hold the seconds expected of a job: of its arithmetic, of loading its images, and of both together."""

    arithmetic: float
    loading: float
    total: float


def pace_of(task: Task, device: str, threads: int | None) -> Pace:
    """Time one forward pass of an untrained model of that name, on a batch of 64, and the loading of a few images."""
    import timm
    import torch
    from timm.data import resolve_model_data_config

    import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
    from lowrank_vit.modules.counting import input_size

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    network = timm.create_model(task.job.model, pretrained=False).to(device).eval()
    images = torch.zeros(BATCH, *(input_size(network) or (3, 224, 224)), device=device)
    with torch.inference_mode():
        network(images[:2]).sum().item()
        start = time.perf_counter()
        network(images).sum().item()
    forward = (time.perf_counter() - start) / BATCH
    torch.set_num_threads(before)
    load = 0.0 if task.spec == EMBEDDED else seconds_to_load(task.spec, resolve_model_data_config(network))
    return Pace(forward, load)


def seconds_to_load(spec: str, data_config: Mapping[str, Any]) -> float:
    """Time one core at reading, decoding and transforming an image, on a few that are drawn for evaluation."""
    from lowrank_vit.data import ImageData

    loader = ImageData(spec, data_config, limit=LOADED, batch_size=1, workers=0).val_dataloader()
    batches = iter(loader)
    next(batches)  # which opens everything
    start = time.process_time()
    rest = sum(1 for _ in batches)
    return (time.process_time() - start) / max(1, rest)


def loading_cores(task: Task) -> float:
    """Count the cores that load a process's images: as many as it has workers, but no core twice."""
    from lowrank_vit.data.loading import default_workers

    share = own_cores() / (1 if launched_from_outside() else task.hardware.devices)
    return min(max(1, default_workers() if task.loader_workers is None else task.loader_workers), share)


def estimate(tasks: Sequence[Task], threads: int | None) -> tuple[list[Expected], str]:
    """Estimate the seconds of each task, and say what they are taken from."""
    from lowrank_vit.runtime.hardware import resolve_device

    device = str(resolve_device(tasks[0].hardware.device))
    known = known_seconds(tasks[0].folder)
    new = {task.job.model: task for task in tasks if kind(task.job) not in known}
    pace = {model: pace_of(new[model], device, threads) for model in sorted(new)}
    times = []
    for task in tasks:
        seconds = known.get(kind(task.job))
        guess = None if seconds is not None else expected(task, pace[task.job.model], loading_cores(task), device)
        times.append(guess or Expected(seconds or 0.0, 0.0, seconds or 0.0))
    basis = f"forward passes, and one batch of {BATCH} images timed" if new else "finished jobs"
    return times, basis


def expected(task: Task, pace: Pace, cores: float, device: str) -> Expected:
    """Estimate a job that has not run before, with ``cores`` that load images in each of its processes.

    A GPU computes while the cores load, so the slower one sets the pace; on a CPU they take turns at the cores, which
    all processes of a machine share.
    """
    job, on_cpu = task.job, device == "cpu"
    computing = task.hardware.num_nodes if on_cpu else task.hardware.processes
    arithmetic = JOB + STEP * steps(job) + pace.forward * forward_passes(job) / computing
    loading = pace.load * images_loaded(job) / (task.hardware.processes * cores)
    return Expected(arithmetic, loading, arithmetic + loading if on_cpu else max(arithmetic, loading))
