"""Rows whose parameters are all trained: their jobs, how long they take, and a job from end to end."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.jobs.job import Job
from experiments.jobs.run import run_job
from experiments.runner.plan import Options, make_plan
from experiments.tables.rows import Row, Table
from lowrank_vit.storage import folder as storage
from tests.experiments.jobs.test_run import StoppedError, evaluate_digits, stop_at, task
from tests.experiments.support.synthetic import IMAGES

pytestmark = pytest.mark.slow

ROW = Row("m/best-distilled-60", "Model-M", "deit_tiny_patch16_224.fb_in1k", "m_small", "X", "svd", 0.6)
TABLE = Table("table9", "Made up", "", (replace(ROW, distill_epochs=30), replace(ROW, id="m/svd-60")))


def jobs(options: Options) -> list[Job]:
    return [item.jobs[0] for item in make_plan(TABLE, options, IMAGES)]


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
