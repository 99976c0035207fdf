"""Run the stages of a job, one after the other; what a stage found is on disk before the next one begins."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from timm.data import resolve_model_data_config
from torch import nn

from experiments.jobs.beside import quantized, time_in_turns, with_fewer_tokens
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import measured
from experiments.jobs.memory import DigitsInMemory
from experiments.jobs.results import find_result, read_json
from experiments.jobs.revisions import is_stale, made_by
from experiments.jobs.summary import sum_up
from experiments.jobs.task import CHECKPOINTS, EMBEDDED, STAGES, MissingWeightsError, Task, Tell, base_task
from experiments.jobs.train_compressed import structured, trained
from experiments.tracking.runs import log_compression
from lowrank_vit import compress, evaluate, is_saved_model, load, save
from lowrank_vit.data import ImageData
from lowrank_vit.models import load_model
from lowrank_vit.modules import counting as cost
from lowrank_vit.records.images import Images
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import write_json
from lowrank_vit.runtime.processes import agreed, is_first


def perform(task: Task, tell: Tell, run: Any) -> dict[str, Any]:
    """Run all stages of a job; returns the measured part of its result. ``run``: of Weights & Biases, or None."""
    job, ledger = task.job, Ledger(task.own_folder / STAGES, tell)
    with ledger.stage("load", "load"):
        model = _load(task)
        data = _images(task, model)
    if job.measure is not None:
        return measured(job, model, data, task.hardware.device, ledger)
    with ledger.stage("evaluate_dense", "evaluate the dense model"):
        dense = _dense(task, model, data)
    if job.bits is not None:
        return _rounded(task, model, data, ledger, dense)
    teacher = copy.deepcopy(model) if job.gradual_epochs else model
    small = model
    if job.recipe is not None:
        small = _compressed(task, model, teacher, data, ledger, run)
        log_compression(run, ledger.found["report"])
    if job.tokens:
        small = with_fewer_tokens(task, small, data, ledger, run)
    if job.timed:
        time_in_turns(task, teacher, small, ledger)
    if small is model:
        return sum_up(task, ledger, dense, None)
    tutor = teacher if job.distill_epochs or job.full else None
    del model, teacher
    _score(task, small, data, ledger, "before", "evaluate before training")
    if job.epochs or job.distill_epochs:
        tuned = trained(task, small, tutor, data, ledger, run)
        _score(task, tuned, data, ledger, "after", "evaluate")
    return sum_up(task, ledger, dense, data.calibration_record if job.sees_images else None)


def _rounded(task: Task, model: nn.Module, data: ImageData, ledger: Ledger, dense: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a job with ``bits``, with the accuracy of the model that was rounded."""
    small = quantized(task, model, data, ledger)
    _score(task, small, data, ledger, "after", "evaluate")
    result = sum_up(task, ledger, dense, None if task.job.recipe is None else data.calibration_record)
    base = base_task(task)
    exact = None if base is None else find_result(base.folder, base.job)
    if exact is None:
        return result | {"top1_float": dense["score"]["top1"]}
    kept = {name: exact[name] for name in ("finetune", "distillation")}
    return result | {"top1_float": exact["top1"]["after"], **kept}


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
    job, source = task.job, DigitsInMemory if task.spec == EMBEDDED else ImageData
    return source(
        task.spec,
        resolve_model_data_config(model),
        batch_size=job.batch_size,
        calibration_samples=job.calibration_samples,
        held_out_samples=job.held_out_samples,
        limit=job.limit,
        seed=job.seed,
        workers=task.loader_workers,
    )


def _evaluated(task: Task, model: nn.Module, data: ImageData) -> dict[str, Any]:
    return evaluate(model, data, hardware=replace(task.hardware, precision=None), progress=False, hits=True)


def _score(task: Task, model: nn.Module, data: ImageData, ledger: Ledger, when: str, said: str) -> None:
    """Measure the accuracy before or after training, unless it is known already."""
    if when not in ledger.found:
        with ledger.stage("evaluate", said):
            score = _evaluated(task, model, data)
        ledger.keep(when, score)


def _dense(task: Task, model: nn.Module, data: ImageData) -> dict[str, Any]:
    """Measure accuracy and size of the dense model: once for each model and set of images."""
    path = task.folder / "dense" / f"{task.job.dense.key}.json"
    known = agreed(read_json(path))
    if known is not None and not is_stale(known):
        return known
    size = cost.input_size(model)
    dense = {
        "job": task.job.dense.as_json(),
        **made_by(task.job.dense),
        "score": _evaluated(task, model, data),
        "params": cost.parameter_count(model),
        "macs": None if size is None else cost.multiply_accumulates(model, size),
    }
    if is_first():
        write_json(path, dense)
    return dense


def _compressed(
    task: Task, model: nn.Module, teacher: nn.Module, data: ImageData, ledger: Ledger, run: Any
) -> nn.Module:
    """Return the compressed model, before fine-tuning; its report goes to the ledger.

    ``model`` itself is trained where its structure is learnt with its weights, towards ``teacher`` if the job is ``full``.
    """
    folder, job = task.own_folder / "compressed", task.job
    if "report" in ledger.found and agreed(is_saved_model(folder)):
        return load(folder)
    learnt = structured(task, model, teacher, data, ledger, run) if job.gradual_epochs else None
    with ledger.stage("compress", f"compress by {job.recipe}"):
        calibration = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
        compressed, report = compress(
            model,
            calibration,
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
