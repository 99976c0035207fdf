"""From rows and options to jobs."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm

from experiments.jobs.description import deviations
from experiments.runner.plan import Images, Options, make_plan, recipe_changes
from experiments.runner.reach import size_reduction
from experiments.tables.rows import Row
from lowrank_vit import InputError
from lowrank_vit.modules.counting import parameter_count
from tests.experiments.support.synthetic import IMAGES, TABLE

SAMPLES = Images("imagefolder:imagenet-samples", 1000, 1000, 1000)


def named(name: str) -> Row:
    """A row of the table for tests."""
    return next(row for row in TABLE.runnable if row.id == name)


def test_the_embedded_default_runs_stand_ins_with_three_seeds() -> None:
    rows = {item.row.id: item for item in make_plan(TABLE, Options(), IMAGES)}
    jobs = rows["m/ours-40"].jobs
    assert [job.seed for job in jobs] == [0, 1, 2]
    assert {(job.model, job.standin, job.recipe, job.epochs) for job in jobs} == {("m_small", True, "paper", 20)}
    assert "no stand-in for Model-N" in (rows["n/svd-40"].reason or "")
    assert rows["n/svd-40"].jobs == ()


def test_missing_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / "deit_tiny_patch16_224.safetensors").write_bytes(b"weights")
    options = Options(data="imagefolder:/somewhere/imagenet-samples", checkpoints=tmp_path)
    rows = {item.row.id: item for item in make_plan(TABLE, options, SAMPLES)}
    (job,) = rows["m/svd-40"].jobs
    assert job.checkpoint is not None
    assert job.checkpoint.startswith("deit_tiny_patch16_224.safetensors@")
    assert (job.calibration_samples, job.held_out_samples) == (900, 100)  # there are no more
    reason = rows["n/svd-40"].reason or ""
    assert "vit_base_patch16_224.augreg_in21k_ft_in1k.safetensors or vit_base_patch16_224.safetensors" in reason


def test_options_change_the_jobs_that_they_bear_on() -> None:
    rows = {item.row.id: item.jobs[0] for item in make_plan(TABLE, Options(epochs=1, steps=100), IMAGES) if item.jobs}
    plain = {item.row.id: item.jobs[0] for item in make_plan(TABLE, Options(), IMAGES) if item.jobs}
    assert rows["m/baseline"].key == plain["m/baseline"].key
    assert rows["m/ours-40"].changes == {"steps": 100}
    assert rows["m/svd-40"].changes == {}
    assert deviations(rows["m/ours-40"], named("m/ours-40")) == ["1 epoch", "100 steps"]


def test_what_a_row_itself_changes_is_in_its_jobs_and_no_deviation() -> None:
    row = replace(named("m/ours-40"), changes={"solver": "moments", "budget": 0.1}, epochs=0, bits=8)
    assert recipe_changes(row, Options(steps=7, solver="closed_form")) == {"steps": 7}  # its solver stays
    own = replace(row, changes={"optimizer": "sgd"})
    assert recipe_changes(own, Options(optimizer="adam")) == {}  # and its optimiser
    table = replace(TABLE, rows=(row,))
    (job,) = make_plan(table, Options(steps=7, seeds=(0,), epochs=3), IMAGES)[0].jobs
    assert job.changes == {"solver": "moments", "budget": 0.1, "steps": 7}
    assert (job.epochs, job.bits) == (0, 8)
    assert deviations(job, row) == ["7 steps"]


def test_a_row_may_aim_at_the_size_of_another_model() -> None:
    row = replace(named("m/ours-40"), standin="digits_deit_base", standin_target="digits_deit_small")
    (job,) = make_plan(replace(TABLE, rows=(row,)), Options(seeds=(0,)), IMAGES)[0].jobs
    dense, small = (parameter_count(timm.create_model(f"digits_deit_{size}")) for size in ("base", "small"))
    assert dense * (1 - job.reduction) == pytest.approx(small)
    with pytest.raises(InputError, match="nothing to remove"):
        size_reduction("digits_deit_small", "digits_deit_base")


def test_a_row_out_of_reach_says_how_far_its_recipe_goes() -> None:
    """Rank 1 everywhere: 3 blocks lose 32 x 96 + 32 x 32 + 2 x 32 x 64 weights for 128 + 64 + 96 + 96."""
    model = timm.create_model("digits_deit_base")
    reach = 3 * (32 * 96 + 32 * 32 + 2 * 32 * 64 - 384) / parameter_count(model)
    row = replace(named("m/ours-40"), standin="digits_deit_base", recipe="exact")
    rows = (replace(row, id="m/a", reduction=reach - 1e-4), replace(row, id="m/b", reduction=reach + 1e-4))
    near, far = make_plan(replace(TABLE, rows=rows), Options(), IMAGES)
    assert (len(near.jobs), near.reason) == (3, None)
    assert far.jobs == ()
    furthest = f"{int(reach * 1e4) / 1e4:g}"
    assert far.reason == f"out of reach: on this model its recipe reaches from 0 (not included) to {furthest}"


def test_only_the_whole_validation_set_is_called_imagenet() -> None:
    assert IMAGES.about(None) == "digits stand-in, not ImageNet"
    assert SAMPLES.about(None) == "on imagefolder:imagenet-samples, 1,000 images"
    whole = Images("hf:ILSVRC/imagenet-1k", 1281167, 50000, 1000)
    assert "ImageNet-1k validation set, 50,000 images" in whole.about(None)
    assert whole.about(500) == "on hf:ILSVRC/imagenet-1k, 500 images"
