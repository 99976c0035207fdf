"""Do what stands beside a job's recipe: round its model, let it hand on fewer tokens, and time it."""

from typing import Any

from torch import nn

from experiments.jobs.ledger import Ledger
from experiments.jobs.task import CHECKPOINTS, Task, base_task
from experiments.jobs.train_compressed import learning_options
from lowrank_vit import (
    Setting,
    benchmark,
    dense_report,
    fewer_tokens,
    is_saved_model,
    load,
    load_report,
    quantize,
    save,
)
from lowrank_vit.data import ImageData
from lowrank_vit.records.images import Images
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.hardware import resolve_device
from lowrank_vit.runtime.processes import agreed, is_first

BATCHES = (1, 8)
SECONDS = 6.0  # for each


def quantized(task: Task, dense: nn.Module, data: ImageData, ledger: Ledger) -> nn.Module:
    """Return the model with ``job.bits`` for each weight, as it is loaded from its file; its report goes to the ledger."""
    folder, job = task.model_folder, task.job
    assert job.bits is not None
    with ledger.stage("quantise", f"round to {job.bits} bits"):
        model, report = _before(task, dense)
        if is_first() and not is_saved_model(folder):
            seen = Images(data.calibration_dataloader(), record=data.calibration_record) if job.quantizer else None
            small, addition = quantize(model, job.bits, seen, quantizer=job.quantizer or "nearest")
            save(small, folder, {**report, **addition})
        agreed(None)  # that it is there
    if "report" not in ledger.found:
        ledger.keep("report", load_report(folder))
    return load(folder)


def _before(task: Task, dense: nn.Module) -> tuple[nn.Module, Report]:
    """Return the model to quantise, and its report: the dense one, or what the job without ``bits`` left behind."""
    base = base_task(task)
    if base is None:
        return dense, dense_report(dense)
    folder = base.model_folder
    return load(folder), load_report(folder)


def with_fewer_tokens(task: Task, model: nn.Module, data: ImageData, ledger: Ledger, run: Any) -> nn.Module:
    """Return a dense or compressed model with fewer tokens, within ``job.tokens``; its report goes to the ledger.

    A rule that learns does so on the calibration images or, for ``job.gradual_epochs``, on labelled ones.
    """
    job, learning = task.job, dict[str, Any]()
    if job.learns_tokens and job.gradual_epochs:
        training = {**learning_options(task, job.gradual_epochs, ledger, run), "lr": job.lr}
        learning = {"learn_on": data, "training": training}
    elif job.learns_tokens:
        images = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
        training = {"seed": job.seed, "progress": False, "checkpoint_dir": task.own_folder / CHECKPOINTS / "tokens"}
        learning = {"learn_on": images, "training": training}
    small: Any
    with ledger.stage("tokens", f"fewer tokens by {job.tokens['rule']}"):
        small = fewer_tokens(model, **job.tokens, **learning)
    ledger.keep("report", small.compression_report)
    return small


def time_in_turns(task: Task, dense: nn.Module, small: nn.Module, ledger: Ledger) -> None:
    """Time both models in turns, as loaded, without compilation; keep the speed-up by the size of the batch.

    It is the median of the ratio within a round, so that other work on the machine affects both alike. On a CPU its own
    time counts: jobs run beside each other.
    """
    if "speed" in ledger.found:
        return
    device = resolve_device(task.hardware.device)
    kind = "bfloat16" if device.type == "cuda" else "float32"
    with ledger.stage("speed", "time it beside the dense model"):
        chosen = [Setting(str(device), kind, "eager", batch) for batch in BATCHES]
        clock = "wall" if device.type == "cuda" else "cpu"
        measured = benchmark({"dense": dense, "small": small}, chosen, seconds=SECONDS, clock=clock)
    found = {str(row["batch"]): row["small"]["speedup"] for row in measured["rows"]}
    ledger.keep("speed", {"threads": measured["threads"], "device": str(device), "clock": clock, **found})
