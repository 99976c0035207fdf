"""Estimate how long jobs will take: from finished jobs like them, else from forward passes and the time of one batch."""

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import timm
import torch
from timm.data import resolve_model_data_config

import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
from experiments.jobs.job import RESULT, Job, read_json
from experiments.jobs.measure import BACKWARD, BATCH, MEASURES, compression_passes, images_of
from experiments.jobs.task import EMBEDDED, Task
from lowrank_vit.data import ImageData
from lowrank_vit.data.loading import default_workers
from lowrank_vit.modules.counting import input_size
from lowrank_vit.runtime.hardware import resolve_device
from lowrank_vit.runtime.processes import launched_from_outside, own_cores

DISTILLED = 20  # images of a step of distillation
STEP, JOB = 4e-3, 1.0  # seconds of overhead for a training step, and for a job
SELECTED = 10  # epochs of token selectors on calibration images
LOADED = 33  # images, the first of which is not timed


class Work(NamedTuple):
    """Count what a job takes: forward passes of one image, steps of training, and images to read and decode."""

    passes: float
    steps: int
    loaded: int


class Pace(NamedTuple):
    """Hold the seconds that an image takes: a forward pass on one device, and one core to load it."""

    forward: float
    load: float


def kind(job: Job) -> str:
    """Name what jobs share that take about equally long: all but the seed and the reduction."""
    return replace(job, seed=0, reduction=0.0).key


def work_of(job: Job) -> Work:
    """Count the work of a job; a training step counts three passes of an image, and one more for a teacher's.

    The images of a minibatch solver and of a distillation stay in memory.
    """
    (train, evaluated), batch = images_of(job), job.batch_size * job.processes
    if job.measure is not None:
        return Work(MEASURES.get(job.measure).forward_passes(job), 0, job.calibration_samples + evaluated)
    if job.recipe is None:
        labelled, unlabelled = job.gradual_epochs * train, job.calibration_samples if job.learns_tokens else 0
        learnt = labelled or SELECTED * unlabelled
        return Work(evaluated + learnt * (2 + BACKWARD), learnt // batch, evaluated + (labelled or unlabelled))
    recipe, epochs = job.recipe_used(), job.trained_epochs
    tuning = epochs * ((1 + BACKWARD + job.full) * train + evaluated)
    distilling = job.distill_epochs * (2 + BACKWARD) * job.calibration_samples
    solving = recipe.steps if recipe.compensation and recipe.solver == "minibatch" else 0
    return Work(
        compression_passes(job) + job.held_out_samples + tuning + distilling + 2 * evaluated,
        solving + job.distill_epochs * job.calibration_samples // DISTILLED + epochs * train // batch,
        job.calibration_samples + job.held_out_samples + 2 * evaluated + epochs * (train + evaluated),
    )


def pace_of(task: Task, device: str, threads: int | None) -> Pace:
    """Time one forward pass of an untrained model of that name, on a batch of 64, and one core at loading a few images."""
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
    if task.spec == EMBEDDED:
        return Pace(forward, 0.0)
    few = ImageData(task.spec, resolve_model_data_config(network), limit=LOADED, batch_size=1, workers=0)
    batches = iter(few.val_dataloader())
    next(batches)  # which opens everything
    start = time.process_time()
    rest = sum(1 for _ in batches)
    return Pace(forward, (time.process_time() - start) / max(1, rest))


def estimate(tasks: Sequence[Task], threads: int | None) -> tuple[list[float], str]:
    """Estimate the seconds of each task, and say what they are taken from: finished jobs of its kind, or its work."""
    device, seconds = str(resolve_device(tasks[0].hardware.device)), dict[str, list[float]]()
    for path in sorted(tasks[0].folder.glob(f"jobs/*/{RESULT}")):
        if (result := read_json(path)) is not None:
            seconds.setdefault(kind(Job.from_json(result["job"])), []).append(result["seconds"]["total"])
    known = {name: fmean(times) for name, times in seconds.items()}
    new = {task.job.model: task for task in tasks if kind(task.job) not in known}
    pace = {model: pace_of(new[model], device, threads) for model in sorted(new)}
    times = [known.get(kind(task.job)) or expected(task, pace[task.job.model], own_cores(), device) for task in tasks]
    return times, f"forward passes, and one batch of {BATCH} images timed" if new else "finished jobs"


def expected(task: Task, pace: Pace, cores: float, device: str) -> float:
    """Estimate the seconds of a job that has not run before, on a machine of so many cores.

    A GPU computes while the cores load, so the slower one sets the pace; on a CPU they take turns at the cores, which
    all processes of a machine share. A process loads with as many cores as it has workers, but no core is used twice.
    """
    on_cpu, hardware, work = device == "cpu", task.hardware, work_of(task.job)
    workers = default_workers() if task.loader_workers is None else task.loader_workers
    loading_cores = min(max(1, workers), cores / (1 if launched_from_outside() else hardware.devices))
    computing = hardware.num_nodes if on_cpu else hardware.processes
    arithmetic = JOB + STEP * work.steps + pace.forward * work.passes / computing
    loading = pace.load * work.loaded / (hardware.processes * loading_cores)
    return arithmetic + loading if on_cpu else max(arithmetic, loading)
