"""The stages of a job, one after the other; what a stage found is on disk before the next one begins."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import nn

from experiments.ledger import Ledger
from experiments.measuring import measured
from experiments.memory import DigitsInMemory
from experiments.plan import EMBEDDED
from experiments.quantising import quantised
from experiments.results import find_result, read_json
from experiments.run import CHECKPOINTS, STAGES, MissingWeightsError, Task, Tell, base_task
from experiments.tracking import log_compression
from experiments.training import trained
from lowrank_vit import cost, provenance, storage
from lowrank_vit.data import ImageData
from lowrank_vit.errors import InputError
from lowrank_vit.evaluate import evaluate
from lowrank_vit.files import write_json
from lowrank_vit.models import load_model
from lowrank_vit.parallel import agreed, is_first
from lowrank_vit.pipeline import compress
from lowrank_vit.report import z_summary
from lowrank_vit.steps import Images, resolve_device


def perform(task: Task, tell: Tell, run: Any) -> dict[str, Any]:
    """All stages of a job; returns the measured part of its result. ``run``: of Weights & Biases, or None."""
    job, ledger = task.job, Ledger(task.own_folder / STAGES, tell)
    with ledger.stage("load", "load"):
        model = _load(task)
        source = DigitsInMemory if task.spec == EMBEDDED else ImageData
        data = source(
            task.spec,
            resolve_model_data_config(model),
            batch_size=job.batch_size,
            calibration_samples=job.calibration_samples,
            held_out_samples=job.held_out_samples,
            limit=job.limit,
            seed=job.seed,
        )
    if job.measure is not None:
        return measured(job, model, data, task.hardware.device, ledger)
    with ledger.stage("evaluate_dense", "evaluate the dense model"):
        dense = _dense(task, model, data)
    if job.bits is not None:
        return _rounded(task, model, data, ledger, dense)
    if job.recipe is None:
        return _result(task, ledger, dense, None)
    compressed = _compressed(task, model, data, ledger)
    log_compression(run, ledger.found["report"])
    teacher = model if job.distill_epochs or job.full else None
    del model
    _score(task, compressed, data, ledger, "before", "evaluate before training")
    if job.epochs or job.distill_epochs:
        tuned = trained(task, compressed, teacher, data, ledger, run)
        _score(task, tuned, data, ledger, "after", "evaluate")
    return _result(task, ledger, dense, data.calibration_record)


def _rounded(task: Task, model: nn.Module, data: ImageData, ledger: Ledger, dense: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a job with ``bits``, beside the accuracy of what was rounded."""
    small = quantised(task, model, ledger)
    _score(task, small, data, ledger, "after", "evaluate")
    result = _result(task, ledger, dense, None if task.job.recipe is None else data.calibration_record)
    base = base_task(task)
    exact = None if base is None else find_result(base.folder, base.job)
    return result | {"top1_float": dense["score"]["top1"] if exact is None else exact["top1"]["after"]}


def _load(task: Task) -> nn.Module:
    """The dense model. Raises ``MissingWeightsError`` where no file was given and none can be fetched."""
    try:
        return load_model(task.job.model, task.checkpoint, seed=task.job.seed)
    except InputError as error:
        if task.checkpoint is None and not task.job.standin:
            raise MissingWeightsError(str(error)) from error
        raise


def _score(task: Task, model: nn.Module, data: ImageData, ledger: Ledger, when: str, said: str) -> None:
    """Accuracy before or after training, unless it is known already."""
    if when in ledger.found:
        return
    with ledger.stage("evaluate", said):
        score = evaluate(model, data, **_evaluation(task))
    ledger.keep(when, score)


def _evaluation(task: Task) -> dict[str, Any]:
    return {**task.hardware.options, "progress": False}


def _dense(task: Task, model: nn.Module, data: ImageData) -> dict[str, Any]:
    """Accuracy and size of the dense model: measured once for each model and set of images."""
    path = task.folder / "dense" / f"{task.job.dense_key}.json"
    known = agreed(read_json(path))
    if known is not None and known["source"] == provenance.source_hash():
        return known
    size = cost.input_size(model)
    found = {
        "source": provenance.source_hash(),
        "score": evaluate(model, data, **_evaluation(task)),
        "params": cost.parameter_count(model),
        "macs": None if size is None else cost.multiply_accumulates(model, size),
    }
    if is_first():
        write_json(path, found)
    return found


def _compressed(task: Task, model: nn.Module, data: ImageData, ledger: Ledger) -> nn.Module:
    """The compressed model, before fine-tuning, and its report in the ledger."""
    folder, job = task.own_folder / "compressed", task.job
    if "report" in ledger.found and agreed(storage.is_saved_model(folder)):
        return storage.load(folder)
    with ledger.stage("compress", f"compress by {job.recipe}"):
        calibration = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
        compressed, report = compress(
            model,
            calibration,
            job.recipe_used(),
            job.reduction,
            held_out=Images(data.held_out_dataloader(), data.held_out_fingerprint),
            seed=job.seed,
            device=task.hardware.device,
            checkpoint_dir=task.own_folder / CHECKPOINTS,
        )
        if is_first() and not storage.is_saved_model(folder):  # an interrupted run may have saved it
            storage.save(compressed.cpu(), folder, report)
    ledger.keep("report", report)
    return compressed


def _result(task: Task, ledger: Ledger, dense: Mapping[str, Any], calibration: dict[str, Any] | None) -> dict[str, Any]:
    """The measured part of the result."""
    found, report = ledger.found, ledger.found.get("report")
    scores = {"dense": dense["score"], "before": found.get("before"), "after": found.get("after", found.get("before"))}
    if report is None:
        scores["after"] = dense["score"]
    elif "after" not in found:
        scores["before"] = None  # without training there is no before
    layers = [] if report is None else [layer for layer in report["layers"] if layer["rank"] is not None]
    errors = [layer["relative_error_held_out"] for layer in layers]
    device = resolve_device(task.hardware.device)
    shared = ("load",) if report is None else ("load", "evaluate_dense")  # the work of all jobs on that model
    work = sum(value for stage, value in found["seconds"].items() if stage not in shared)
    inner = {} if report is None else {f"compress/{stage}": value for stage, value in report["seconds"].items()}
    return {
        "params": {"dense": dense["params"], "compressed": dense["params"] if report is None else _size(report)},
        "macs": {"dense": dense["macs"], "compressed": dense["macs"] if report is None else _macs(report)},
        **{name: {when: score and score[name] for when, score in scores.items()} for name in ("top1", "top5", "loss")},
        "n": dense["score"]["n"],
        "relative_error": fmean(layer["relative_error"] for layer in layers) if layers else None,
        "relative_error_held_out": fmean(errors) if errors else None,
        "z": z_summary(layers),
        "trainable_share": (found.get("distillation") or found.get("finetune") or {}).get("trainable_share"),
        "finetune": found.get("finetune"),
        "distillation": found.get("distillation"),
        "file_bytes": None if report is None or "bytes" not in report else report["bytes"]["file"],
        "seconds": {**found["seconds"], "total": round(work, 3), **inner},
        "layers": [
            {name: layer[name] for name in ("name", "rank", "params", "relative_error", "relative_error_held_out")}
            for layer in layers
        ],
        "threads": torch.get_num_threads(),
        "provenance": provenance.record(device, task.job.seed, calibration),
    }


def _size(report: Mapping[str, Any]) -> int:
    return report["params"]["compressed"]


def _macs(report: Mapping[str, Any]) -> int | None:
    return None if report["macs"] is None else report["macs"]["compressed"]
