"""Rows whose parameters are all trained: their jobs, how long they take, and a job from end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.jobs.description import tags
from experiments.jobs.job import Job
from experiments.jobs.protocol import protocol
from experiments.jobs.run import run_job
from experiments.report.details import command
from experiments.runner.estimate import forward_passes
from experiments.runner.plan import Options, make_plan
from experiments.tables.rows import Row, Table
from lowrank_vit.storage import folder as storage
from tests.experiments.jobs.test_run import StoppedError, evaluate_digits, stop_at, task
from tests.experiments.support.synthetic import IMAGES

ROW = Row("m/best-distilled-60", "Model-M", "deit_tiny_patch16_224.fb_in1k", "m_small", "X", "svd", 0.6)
TABLE = Table("table9", "Made up", "", (replace(ROW, distill_epochs=30), replace(ROW, id="m/svd-60")))


def jobs(options: Options) -> list[Job]:
    return [item.jobs[0] for item in make_plan(TABLE, options, IMAGES)]


def test_what_is_distilled_is_not_fine_tuned() -> None:
    for options in (Options(), Options(epochs=3)):
        job, tuned = jobs(options)
        assert (job.distill_epochs, job.epochs) == (30, 0)
        assert (tuned.distill_epochs, tuned.epochs) == (0, options.epochs or 20)
        assert protocol(TABLE.runnable[0], job) == "calibration-distilled"
        assert protocol(TABLE.runnable[1], tuned).startswith("partial-ft")
        assert "--epochs" not in command(TABLE, TABLE.runnable[0], [job])
    assert "distilled" in tags(job)


def test_a_full_fine_tune_is_a_job_of_its_own_and_left_out_where_nothing_is_trained() -> None:
    row = replace(ROW, full=True, protocol="full-ft+kd")
    table = Table("table9", "Made up", "", (row,))
    planned, untrained = (make_plan(table, Options(epochs=count), IMAGES)[0] for count in (3, 0))
    assert not untrained.jobs
    assert "epochs" in str(untrained.reason)
    job = planned.jobs[0]
    assert (job.full, planned.reason) == (True, None)
    assert protocol(row, job) == "full-ft+kd, 3 epochs"
    assert "fully fine-tuned" in tags(job)
    train = int(job.images.split("+")[0])
    assert forward_passes(job) - forward_passes(replace(job, full=False)) == 3 * train  # the teacher's


def test_a_full_fine_tune_from_end_to_end(tmp_path: Path) -> None:
    done = task(tmp_path, recipe="svd", epochs=1, full=True)
    result = run_job(done, lambda text: None)
    assert (result["trainable_share"], result["finetune"]["distilled"]) == (1.0, True)
    assert storage.load_report(done.model_folder)["protocol"] == "full-ft+kd"


def test_a_distilled_job_from_end_to_end_and_interrupted(tmp_path: Path) -> None:
    settings = {"recipe": "svd", "epochs": 0, "distill_epochs": 3}
    whole, stopped = (task(tmp_path / name, **settings) for name in ("whole", "stopped"))
    said: list[str] = []
    result = run_job(whole, said.append)
    assert [text[:20] for text in said if text.startswith("distil,")] == [f"distil, epoch {n} of 3" for n in (1, 2, 3)]
    assert not any("fine-tune" in text for text in said)
    entry = result["distillation"]
    assert (result["finetune"], result["trainable_share"], entry["epochs"]) == (None, 1.0, 3)
    assert (entry["images"], entry["held_out_images"], entry["flips"]) == (64, 32, False)
    assert entry["kl_held_out"]["after"] < entry["kl_held_out"]["before"]
    assert result["seconds"]["distill"] > 0
    assert result["seconds"]["total"] >= result["seconds"]["distill"]
    assert result["top1"]["before"] is not None
    assert result["top1"]["after"] == evaluate_digits(whole.model_folder)
    assert result["top1"]["before"] == evaluate_digits(whole.own_folder / "compressed")
    assert storage.load_report(whole.model_folder)["protocol"] == "calibration-distilled"
    assert not (whole.own_folder / "checkpoints").exists()
    with pytest.raises(StoppedError):
        run_job(stopped, stop_at("distil, epoch 2 of 3", []))
    again = run_job(stopped, said.append)
    assert again["distillation"] == entry
    one, other = (load_file(each.model_folder / "model.safetensors") for each in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_bits_are_those_of_the_distilled_model(tmp_path: Path) -> None:
    settings = {"recipe": "svd", "epochs": 0, "distill_epochs": 1}
    small = run_job(task(tmp_path, bits=8, **settings), lambda text: None)
    distilled = run_job(task(tmp_path, **settings), lambda text: None)
    assert small["top1_float"] == distilled["top1"]["after"]
