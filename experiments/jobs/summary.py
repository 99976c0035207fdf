"""Sum up what the stages of a job have found: the measured part of its result."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from experiments.jobs.ledger import Ledger
from experiments.jobs.task import Task
from lowrank_vit.records.report import z_summary
from lowrank_vit.runtime import provenance
from lowrank_vit.runtime.hardware import resolve_device


def sum_up(task: Task, ledger: Ledger, dense: Mapping[str, Any], calibration: dict[str, Any] | None) -> dict[str, Any]:
    """Sum up sizes, scores, errors and seconds. ``dense``: what is known of the dense model."""
    stages, report = ledger.found, ledger.found.get("report")
    layers = [] if report is None else [layer for layer in report["layers"] if layer["rank"] is not None]
    scores = _scores(stages, dense)
    return {
        **_sizes(report, dense),
        **{name: {when: score and score[name] for when, score in scores.items()} for name in ("top1", "top5", "loss")},
        "n": dense["score"]["n"],
        "hits": scores["after"].get("hits"),
        "relative_error": _mean(layers, "relative_error"),
        "relative_error_held_out": _mean(layers, "relative_error_held_out"),
        "z": z_summary(layers),
        "trainable_share": (stages.get("distillation") or stages.get("finetune") or {}).get("trainable_share"),
        "finetune": stages.get("finetune"),
        "distillation": stages.get("distillation"),
        "file_bytes": None if report is None or "bytes" not in report else report["bytes"]["file"],
        "speed": stages.get("speed"),
        "seconds": _seconds(stages),
        "provenance": provenance.record(resolve_device(task.hardware.device), task.job.seed, calibration),
    }


def _scores(stages: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    """Score the dense model, and the compressed one before and after training; None where there is no such model."""
    before, after = stages.get("before"), stages.get("after", stages.get("before"))
    if stages.get("report") is None:
        after = dense["score"]
    elif "after" not in stages:
        before = None  # without training there is no before
    return {"dense": dense["score"], "before": before, "after": after}


def _sizes(report: Mapping[str, Any] | None, dense: Mapping[str, Any]) -> dict[str, Any]:
    """Count parameters and multiply-accumulates, dense and compressed."""
    if report is None:
        return {name: {"dense": dense[name], "compressed": dense[name]} for name in ("params", "macs")}
    macs = None if report["macs"] is None else report["macs"]["compressed"]
    return {
        "params": {"dense": dense["params"], "compressed": report["params"]["compressed"]},
        "macs": {"dense": dense["macs"], "compressed": macs},
    }


def _seconds(stages: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of the stages, of those within the compression, and of all that other jobs do not share."""
    report = stages.get("report")
    shared = ("load",) if report is None else ("load", "evaluate_dense")
    work = sum(value for stage, value in stages["seconds"].items() if stage not in shared)
    inner = {} if report is None else {f"compress/{stage}": value for stage, value in report["seconds"].items()}
    return {**stages["seconds"], "total": round(work, 3), **inner}


def _mean(layers: list[Mapping[str, Any]], name: str) -> float | None:
    return fmean(layer[name] for layer in layers) if layers else None
