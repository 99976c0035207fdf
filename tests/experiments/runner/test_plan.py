"""Rows and tables, from rows and options to jobs, how long they will take, and the command that repeats a row."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm

from experiments.__main__ import _parser, main
from experiments.jobs.description import deviations
from experiments.jobs.job import Job
from experiments.jobs.task import Task
from experiments.report.rows import command
from experiments.runner import estimate as module
from experiments.runner.campaign import _options
from experiments.runner.estimate import Pace, expected, work_of
from experiments.runner.plan import Images, Options, make_plan, open_images, recipe_changes
from experiments.runner.reach import size_reduction
from experiments.tables.catalogue import find, tables
from experiments.tables.rows import Reported, Row, Table
from lowrank_vit import Hardware, InputError, get_recipe
from lowrank_vit.compression.budget import check_budget
from lowrank_vit.models import STANDINS
from lowrank_vit.modules.counting import parameter_count
from tests.experiments.support.synthetic import IMAGES, TABLE
from tests.support.cases import in_turn

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


ROWS = {row.id: row for row in TABLE.runnable}


@pytest.mark.parametrize(
    ("options", "name"),
    in_turn(
        [
            Options(),
            Options(seeds=(3,), epochs=2, steps=7, solver="moments", limit=100),
            Options(seeds=(0, 1), batch_size=32, calibration_samples=64, processes=4, precision="bf16-mixed"),
        ],
        ["m/baseline", "m/svd-40", "m/ours-40"],
    ),
)
def test_the_command_line_plans_the_same_jobs(options: Options, name: str) -> None:
    """The truth is the parser of the command line itself, and the plan that it leads to."""

    def jobs(options: Options) -> list[str]:
        plan = {item.row.id: item for item in make_plan(TABLE, options, IMAGES)}
        return [job.key for job in plan[name].jobs]

    plan = {item.row.id: item for item in make_plan(TABLE, options, IMAGES)}
    words = shlex.split(command(TABLE, ROWS[name], plan[name].jobs))
    assert words[:5] == ["python", "-m", "experiments", "run", f"table9/{name}"]
    assert jobs(_options(_parser().parse_args(words[3:]))) == jobs(options)


JOB = Job("m", False, "imagefolder:x", "1000+500", "svd", 0.4, 0, epochs=2, calibration_samples=100)


def task_of(job: Job, **fields: Any) -> Task:
    return Task(job, "row", "X", "table2", Path("nowhere"), "imagefolder:x", **fields)


def test_the_slower_of_arithmetic_and_loading_by_hand() -> None:
    """SVD, two epochs: 100 images of calibration, 256 held out, 2 x 500 evaluated, 2 x (3 x 1000 + 500) in training."""
    passes, loaded, steps = 100 + 256 + 1000 + 7000, 100 + 256 + 1000 + 2 * 1500, 2 * 1000 // 64
    assert work_of(JOB) == (passes, steps, loaded)
    assert work_of(replace(JOB, recipe=None, epochs=0)) == (500, 0, 500)
    overhead = module.JOB + module.STEP * steps
    task = task_of(JOB, loader_workers=4)
    arithmetic, loading = overhead + passes * 0.001, loaded * 0.1 / 4
    assert expected(task, Pace(forward=0.001, load=0.1), 4, "cuda") == pytest.approx(loading)
    assert expected(task, Pace(forward=0.1, load=0.001), 4, "cuda") == pytest.approx(overhead + passes * 0.1)
    assert expected(task, Pace(forward=0.001, load=0.1), 4, "cpu") == pytest.approx(
        arithmetic + loading
    )  # the same cores
    eight = task_of(replace(JOB, processes=8), hardware=Hardware(devices=8), loader_workers=4)
    assert expected(eight, Pace(forward=0.001, load=0.1), 32, "cuda") == pytest.approx(loading / 8)
    overhead = module.JOB + module.STEP * (2 * 1000 // 512)
    assert expected(eight, Pace(forward=0.001, load=0.0), 4, "cuda") == pytest.approx(overhead + passes * 0.001 / 8)
    on_cpu = expected(eight, Pace(forward=0.001, load=0.1), 4, "cpu")  # eight processes on a machine of four cores
    assert on_cpu == pytest.approx(overhead + passes * 0.001 + loading)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "table2/deit_s/svd-40", "--seeds", "0,1", "--dry-run", "--results", str(tmp_path), "--no-wandb"])
    assert stopped.value.code == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "table2/deit_s/svd-40  2 " in told.err
    assert "2 jobs to run" in told.err
    assert list(tmp_path.iterdir()) == []


PRINTED = {  # copied by hand from the paper
    "deit_b/baseline": ("86.6M", 81.80),
    "deit_b/aafm": ("51.9M (-40%)", 81.28),
    "deit_b/s2vite": ("56.8M (-35%)", 82.20),
    "deit_b/svd-40": ("52.0M (-40%)", 77.30),
    "deit_b/ours-exact-60": ("34.6M (-60%)", 81.10),
    "deit_s/wdpruning": ("15.0M (-32%)", 78.60),
    "deit_s/ours-paper-50": ("11.1M (-50%)", 79.34),
    "vit_b/vtp": ("48.0M (-45%)", 80.70),
    "vit_b/svd-50": ("42.3M (-50%)", 78.50),
    "vit_b/ours-paper-40": ("52.9M (-40%)", 84.20),
    "swin_b/baseline": ("88.1M", 85.45),
    "swin_b/spvit": ("68.0M (-24%)", 83.20),
    "swin_b/ours-loss_aware-60": ("35.3M (-60%)", 83.14),
    "deit_t/ours-exact-40": (None, None),
}


def test_rows_are_well_formed() -> None:
    for table in tables().values():
        assert len(table.rows) > 3
        assert table.runnable
        assert len({row.id for row in table.rows}) == len(table.rows)
        assert table.title
        assert "python -m experiments run" in table.about
        for row in table.rows:
            assert row.id.count("/") == 1
            assert not isinstance(row, Reported) or (row.source and 0 < row.top1 < 100)
        for row in table.runnable:
            architecture = row.model.partition(".")[0]
            assert timm.is_model(architecture)
            assert row.model in timm.models.get_arch_pretrained_cfgs(architecture), "the tag is unknown to timm"
            assert row.standin is None or row.standin in STANDINS
            assert row.recipe is None or get_recipe(row.recipe)
            cut = row.recipe is not None or row.measure or row.tokens
            assert cut or (row.reduction == 0 and row.target is None)
            assert row.recipe is None or row.reduction or row.target
            assert (row.target is None) == (row.standin_target is None)
            assert (row.top1_reported is None and not row.printed) == (row.source is None)


@pytest.mark.slow
@pytest.mark.parametrize("table", tables().values(), ids=lambda table: table.name)
def test_every_reduction_is_within_reach_of_its_recipe(table: Table) -> None:
    """Or the row says how far its recipe reaches, which only those beyond the paper may."""
    for item in make_plan(table, Options(seeds=(0,)), open_images("digits")):
        for job in item.jobs if item.row.recipe is not None else ():
            model = timm.create_model(job.model)
            check_budget(model, job.recipe_used(), job.budget)
        if item.row.standin is None:
            continue
        if (item.row.calibration_images or 0) > 1168:  # all digits that are not held out
            assert item.jobs == ()
            assert "images to calibrate on, of which digits has 1168" in (item.reason or "")
        elif not item.jobs:
            assert item.row.source is None
            of_mlps_alone = item.row.recipe in ("vbp", "spvit-he-gates", "spvit-he")
            assert item.row.reduction >= 0.8 or of_mlps_alone
            assert re.search(r"out of reach: .* reaches from 0 \(not included\) to 0\.\d+$", item.reason or "")


def test_tables_share_their_jobs() -> None:
    """What table 4 rounds is what table 2 compresses, so that nothing long runs twice."""
    plans = {}
    for name, row in (("table2", "deit_b/ours-paper-50"), ("table4", "deit_b/paper-50-8")):
        plan = make_plan(find(name)[0], Options(seeds=(0, 1)), open_images("digits"))
        plans[name] = next(item.jobs for item in plan if item.row.id == row)
    assert [replace(job, bits=None).key for job in plans["table4"]] == [job.key for job in plans["table2"]]


def test_table2_prints_what_the_paper_prints() -> None:
    table, _ = find("table2")
    for row in table.runnable:
        assert row.recipe is None or row.id.endswith(f"-{round(100 * row.reduction)}")
    rows = {row.id: row for row in table.rows}
    for name, printed in PRINTED.items():
        row = rows[name]
        own = (row.params_printed, row.top1_reported) if isinstance(row, Row) else (row.params, row.top1)
        assert own == printed, name


def look_up(target: str) -> None:
    table, row = find(target)
    table.select(row)


def test_unknown_names_get_a_hint() -> None:
    for target, hint in (
        ("tabel2", "unknown table 'tabel2': did you mean 'table2'"),
        ("table2/deit_b/ours-exat-40", "did you mean 'deit_b/ours-exact-40'"),
        ("table2/deit_b/aafm", "cannot be run"),
    ):
        with pytest.raises(InputError, match=hint):
            look_up(target)
