"""Do what follows a compression: train it, round it, let it hand on fewer tokens, and time it."""

from typing import Any, cast

import timm
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from experiments.jobs.ledger import EpochTeller, Running
from experiments.jobs.task import CHECKPOINTS, base_task
from lowrank_vit import (
    Setting,
    augmentations,
    benchmark,
    dense_report,
    distill,
    fewer_tokens,
    finetune,
    is_saved_model,
    learn,
    load,
    load_report,
    quantize,
    save,
)
from lowrank_vit.records.images import Images
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.hardware import resolve_device
from lowrank_vit.runtime.processes import agreed, is_first

BATCHES = (1, 8)  # of which the speed is measured
SECONDS = 6.0  # for each


class Curves(WandbLogger):
    """Log the metrics of a training alone: the run has its config, and the hyperparameters are in the result.

    A process that Lightning spawns attaches to the run that this one has begun, and only the first of them logs, so
    there is one run on any number of devices.
    """

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings that were used would overwrite those that were asked for."""


def trained(running: Running, model: nn.Module, teacher: nn.Module | None) -> nn.Module:
    """Distil or fine-tune the model, as the job says; what was measured is in the ledger."""
    folder, job, data, ledger = running.task.model_folder, running.task.job, running.data, running.ledger
    entry = "distillation" if job.distill_epochs else "finetune"
    if entry in ledger.found and agreed(is_saved_model(folder)):
        return load(folder)
    options = learning_options(running, job.distill_epochs or job.epochs)
    with ledger.stage(*(("distill", "distil") if job.distill_epochs else ("finetune", "fine-tune"))):
        if job.distill_epochs:
            assert teacher is not None
            images, options["held_out"] = data.calibration_tensor(), data.held_out_tensor()
            options |= {**job.distill_changes, **augmentations(data.source.mirrors)}
            tuned: Any = distill(model, teacher, images, **options)
            described = {**tuned.describe(), "calibration": data.calibration_record}
        else:
            options |= {**job.finetune_changes, "lr": job.lr, "teacher": teacher, "full": job.full}
            tuned = finetune(model, data, **options)
            described = tuned.describe()
        if is_first() and not is_saved_model(folder):
            report = {**ledger.found["report"], "protocol": tuned.protocol, entry: described}
            save(tuned.model.cpu(), folder, cast(Report, report))
    ledger.keep(entry, described)
    return cast(nn.Module, tuned.model)


def structured(running: Running, model: nn.Module, teacher: nn.Module) -> Any:
    """Learn a structure together with the weights of ``model``, in place; return what was learnt.

    From scratch, the weights are random at first, by the job's seed.
    """
    job, options = running.task.job, learning_options(running, running.task.job.gradual_epochs)
    options |= {"checkpoint_dir": options["checkpoint_dir"] / "gates", "teacher": teacher if job.full else None}
    if job.scratch:
        with isolate_rng():
            torch.manual_seed(job.seed)
            model.load_state_dict(timm.create_model(job.model, pretrained=False).state_dict())
    with running.ledger.stage("learn", f"learn by {job.recipe}"):
        return learn(model, running.data, job.recipe_used(), job.reduction, lr=job.lr, **options)


def learning_options(running: Running, epochs: int) -> dict[str, Any]:
    """Return the options of any training: hardware, epochs, loggers, and where it resumes after an interruption."""
    curves = [] if running.run is None else [Curves(experiment=running.run)]
    return {
        "hardware": running.task.hardware,
        "epochs": epochs,
        "loggers": [EpochTeller(running.ledger.tell, epochs), *curves],
        "checkpoint_dir": running.task.own_folder / CHECKPOINTS,
        "seed": running.task.job.seed,
        "progress": False,
    }


def quantized(running: Running, dense: nn.Module) -> nn.Module:
    """Return the model with ``job.bits`` for each weight, as it is loaded from its file; its report goes to the ledger.

    It is the dense model, or the one that the job without ``bits`` left behind.
    """
    folder, job, data, ledger = running.task.model_folder, running.task.job, running.data, running.ledger
    assert job.bits is not None
    with ledger.stage("quantise", f"round to {job.bits} bits"):
        base = base_task(running.task)
        model = dense if base is None else load(base.model_folder)
        report = dense_report(dense) if base is None else load_report(base.model_folder)
        if is_first() and not is_saved_model(folder):
            seen = Images(data.calibration_dataloader(), record=data.calibration_record) if job.quantizer else None
            small, addition = quantize(model, job.bits, seen, quantizer=job.quantizer or "nearest")
            save(small, folder, {**report, **addition})
        agreed(None)  # that it is there
    if "report" not in ledger.found:
        ledger.keep("report", load_report(folder))
    return load(folder)


def with_fewer_tokens(running: Running, model: nn.Module) -> nn.Module:
    """Return a dense or compressed model with fewer tokens, within ``job.tokens``; its report goes to the ledger.

    A rule that learns does so on the calibration images or, for ``job.gradual_epochs``, on labelled ones.
    """
    job, data, learning = running.task.job, running.data, dict[str, Any]()
    if job.learns_tokens and job.gradual_epochs:
        training = {**learning_options(running, job.gradual_epochs), "lr": job.lr}
        learning = {"learn_on": data, "training": training}
    elif job.learns_tokens:
        images = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
        checkpoints = running.task.own_folder / CHECKPOINTS / "tokens"
        training = {"seed": job.seed, "progress": False, "checkpoint_dir": checkpoints}
        learning = {"learn_on": images, "training": training}
    small: Any
    with running.ledger.stage("tokens", f"fewer tokens by {job.tokens['rule']}"):
        small = fewer_tokens(model, **job.tokens, **learning)
    running.ledger.keep("report", small.compression_report)
    return small


def time_in_turns(running: Running, dense: nn.Module, small: nn.Module) -> None:
    """Time both models in turns, as loaded, without compilation; keep the speed-up by the size of the batch.

    It is the median of the ratio within a round, so that other work on the machine affects both alike. On a CPU its own
    time counts: jobs run beside each other.
    """
    ledger, device = running.ledger, resolve_device(running.task.hardware.device)
    if "speed" in ledger.found:
        return
    kind, clock = ("bfloat16", "wall") if device.type == "cuda" else ("float32", "cpu")
    with ledger.stage("speed", "time it beside the dense model"):
        chosen = [Setting(str(device), kind, "eager", batch) for batch in BATCHES]
        measured = benchmark({"dense": dense, "small": small}, chosen, seconds=SECONDS, clock=clock)
    found = {str(row["batch"]): row["small"]["speedup"] for row in measured["rows"]}
    ledger.keep("speed", {"threads": measured["threads"], "device": str(device), "clock": clock, **found})
