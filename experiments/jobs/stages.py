"""Run the stages of a job, one after the other; what a stage found is on disk before the next one begins."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from timm.data import resolve_model_data_config
from torch import nn

from experiments.jobs.job import find_result, read_json
from experiments.jobs.ledger import Ledger, Running
from experiments.jobs.measure import measured
from experiments.jobs.memory import DigitsInMemory
from experiments.jobs.revisions import is_stale, made_by
from experiments.jobs.steps import quantized, structured, time_in_turns, trained, with_fewer_tokens
from experiments.jobs.task import CHECKPOINTS, EMBEDDED, STAGES, MissingWeightsError, Task, Tell, base_task
from experiments.tracking.runs import log_compression
from lowrank_vit import compress, evaluate, is_saved_model, load, save
from lowrank_vit.data import ImageData
from lowrank_vit.models import load_model
from lowrank_vit.modules import counting as cost
from lowrank_vit.records.images import Images
from lowrank_vit.records.report import z_summary
from lowrank_vit.runtime import provenance
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import write_json
from lowrank_vit.runtime.hardware import resolve_device
from lowrank_vit.runtime.processes import agreed, is_first

SETTINGS = ("batch_size", "calibration_samples", "held_out_samples", "limit", "seed")  # of a job's images


def perform(task: Task, tell: Tell, run: Any) -> dict[str, Any]:
    """Run all stages of a job; returns the measured part of its result. ``run``: of Weights & Biases, or None."""
    job, ledger = task.job, Ledger(task.own_folder / STAGES, tell)
    with ledger.stage("load", "load"):
        model = _load(task)
        running = Running(task, _images(task, model), ledger, run)
    if job.measure is not None:
        return measured(job, model, running.data, task.hardware.device, ledger)
    with ledger.stage("evaluate_dense", "evaluate the dense model"):
        dense = _dense(running, model)
    if job.bits is not None:
        return _rounded(running, model, dense)
    teacher = copy.deepcopy(model) if job.gradual_epochs else model
    small = model
    if job.recipe is not None:
        small = _compressed(running, model, teacher)
        log_compression(run, ledger.found["report"])
    if job.tokens:
        small = with_fewer_tokens(running, small)
    if job.timed:
        time_in_turns(running, teacher, small)
    if small is model:
        return sum_up(running, dense)
    tutor = teacher if job.distill_epochs or job.full else None
    del model, teacher
    _score(running, small, "before", "evaluate before training")
    if job.epochs or job.distill_epochs:
        _score(running, trained(running, small, tutor), "after", "evaluate")
    return sum_up(running, dense)


def _rounded(running: Running, model: nn.Module, dense: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a job with ``bits``, with the accuracy of the model that was rounded."""
    _score(running, quantized(running, model), "after", "evaluate")
    result, base = sum_up(running, dense), base_task(running.task)
    exact = None if base is None else find_result(base.folder, base.job)
    if exact is None:
        return result | {"top1_float": dense["score"]["top1"]}
    training = {name: exact[name] for name in ("finetune", "distillation")}
    return {**result, **training, "top1_float": exact["top1"]["after"]}


def _load(task: Task) -> nn.Module:
    """Load the dense model. Raises ``MissingWeightsError`` where no file was given and none can be fetched."""
    try:
        return load_model(task.job.model, task.checkpoint, seed=task.job.seed)
    except InputError as error:
        if task.checkpoint is None and not task.job.standin:
            raise MissingWeightsError(str(error)) from error
        raise


def _images(task: Task, model: nn.Module) -> ImageData:
    """Open the images as the model takes them; the digits are kept in memory."""
    source = DigitsInMemory if task.spec == EMBEDDED else ImageData
    options = {name: getattr(task.job, name) for name in SETTINGS}
    return source(task.spec, resolve_model_data_config(model), workers=task.loader_workers, **options)


def _evaluated(running: Running, model: nn.Module) -> dict[str, Any]:
    hardware = replace(running.task.hardware, precision=None)
    return evaluate(model, running.data, hardware=hardware, progress=False, hits=True)


def _score(running: Running, model: nn.Module, when: str, said: str) -> None:
    """Measure the accuracy before or after training, unless it is known already."""
    if when not in running.ledger.found:
        with running.ledger.stage("evaluate", said):
            score = _evaluated(running, model)
        running.ledger.keep(when, score)


def _dense(running: Running, model: nn.Module) -> dict[str, Any]:
    """Measure accuracy and size of the dense model: once for each model and set of images."""
    job = running.task.job.dense
    path = running.task.folder / "dense" / f"{job.key}.json"
    known = agreed(read_json(path))
    if known is not None and not is_stale(known):
        return known
    size = cost.input_size(model)
    dense = {
        "job": job.as_json(),
        **made_by(job),
        "score": _evaluated(running, model),
        "params": cost.parameter_count(model),
        "macs": None if size is None else cost.multiply_accumulates(model, size),
    }
    if is_first():
        write_json(path, dense)
    return dense


def _compressed(running: Running, model: nn.Module, teacher: nn.Module) -> nn.Module:
    """Return the compressed model, before fine-tuning; its report goes to the ledger.

    ``model`` itself is trained where its structure is learnt with its weights, towards ``teacher`` if the job is ``full``.
    """
    task, job, data, ledger = running.task, running.task.job, running.data, running.ledger
    folder = task.own_folder / "compressed"
    if "report" in ledger.found and agreed(is_saved_model(folder)):
        return load(folder)
    learnt = structured(running, model, teacher) if job.gradual_epochs else None
    with ledger.stage("compress", f"compress by {job.recipe}"):
        compressed, report = compress(
            model,
            Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record),
            job.recipe_used(),
            budget=job.budget,
            held_out=Images(data.held_out_dataloader(), data.held_out_fingerprint),
            seed=job.seed,
            device=task.hardware.device,
            checkpoint_dir=task.own_folder / CHECKPOINTS,
            learnt=learnt,
        )
        if is_first() and not is_saved_model(folder):  # an interrupted run may have saved it
            save(compressed.cpu(), folder, report)
    ledger.keep("report", report)
    return compressed


def sum_up(running: Running, dense: Mapping[str, Any]) -> dict[str, Any]:
    """Sum up sizes, scores, errors and seconds: the measured part of a result. ``dense``: what is known of that model."""
    job, stages, score = running.task.job, running.ledger.found, dense["score"]
    report = stages.get("report")
    layers = [] if report is None else [layer for layer in report["layers"] if layer["rank"] is not None]
    trained = stages.get("distillation") or stages.get("finetune") or {}
    scores = {"dense": score, "before": None, "after": score}  # without a smaller model there is no other
    if report is not None:  # without training there is no before
        before = stages.get("before")
        scores |= {"before": before if "after" in stages else None, "after": stages.get("after", before)}
    sizes = ("params", "macs")
    small = dense if report is None else {name: report[name] and report[name]["compressed"] for name in sizes}
    errors = ("relative_error", "relative_error_held_out")
    seen = running.data.calibration_record if job.sees_images else None
    return {
        **{name: {"dense": dense[name], "compressed": small[name]} for name in sizes},
        **{name: {when: score and score[name] for when, score in scores.items()} for name in ("top1", "top5", "loss")},
        "n": score["n"],
        "hits": (scores["after"] or {}).get("hits"),
        **{name: fmean(layer[name] for layer in layers) if layers else None for name in errors},
        "z": z_summary(layers),
        "trainable_share": trained.get("trainable_share"),
        "finetune": stages.get("finetune"),
        "distillation": stages.get("distillation"),
        "file_bytes": None if report is None or "bytes" not in report else report["bytes"]["file"],
        "speed": stages.get("speed"),
        "seconds": _seconds(stages),
        "provenance": provenance.record(resolve_device(running.task.hardware.device), job.seed, seen),
    }


def _seconds(stages: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of the stages, of those within the compression, and of all that other jobs do not share."""
    report = stages.get("report")
    shared = ("load",) if report is None else ("load", "evaluate_dense")
    work = sum(value for stage, value in stages["seconds"].items() if stage not in shared)
    inner = {} if report is None else {f"compress/{stage}": value for stage, value in report["seconds"].items()}
    return {**stages["seconds"], "total": round(work, 3), **inner}
