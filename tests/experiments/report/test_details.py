"""How the page says that a row can be repeated, and where it comes from."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import _parser
from experiments.jobs.results import find_result
from experiments.jobs.revisions import digest
from experiments.report.details import command, details, layers, on_imagenet, provenance
from experiments.runner.campaign import _options
from experiments.runner.plan import Images, Options, as_json, jobs_of, make_plan, read_plan
from tests.experiments.support.synthetic import IMAGES, TABLE, fill, result

REAL = Images("imagefolder:samples", 1000, 1000, 1000)
ROWS = {row.id: row for row in TABLE.runnable}


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(seeds=(3,), epochs=2, steps=7, solver="moments", limit=100),
        Options(seeds=(0, 1), batch_size=32, calibration_samples=64, processes=4, precision="bf16-mixed"),
    ],
)
@pytest.mark.parametrize("name", ["m/baseline", "m/svd-40", "m/ours-40"])
def test_the_command_line_plans_the_same_jobs(options: Options, name: str) -> None:
    """The truth is the parser of the command line itself, and the plan that it leads to."""

    def jobs(options: Options) -> list[str]:
        plan = {item.row.id: item for item in make_plan(TABLE, options, IMAGES)}
        return [job.key for job in plan[name].jobs]

    plan = {item.row.id: item for item in make_plan(TABLE, options, IMAGES)}
    words = shlex.split(command(TABLE, ROWS[name], plan[name].jobs))
    assert words[:5] == ["python", "-m", "experiments", "run", f"table9/{name}"]
    assert jobs(_options(_parser().parse_args(words[3:]))) == jobs(options)


def test_the_rows_own_choices_are_not_options(tmp_path: Path) -> None:
    row = replace(ROWS["m/ours-40"], changes={"solver": "moments"}, epochs=0)
    plan = make_plan(replace(TABLE, rows=(row,)), Options(steps=9), IMAGES)
    assert command(TABLE, row, plan[0].jobs) == "python -m experiments run table9/m/ours-40 --seeds 0,1,2 --steps 9"


def test_folders_that_nobody_knows_are_placeholders(tmp_path: Path) -> None:
    (tmp_path / "deit_tiny_patch16_224.fb_in1k.safetensors").write_bytes(b"weights")
    options = Options(data="imagefolder:/data/samples", checkpoints=tmp_path)
    plan = {item.row.id: item for item in make_plan(TABLE, options, REAL)}
    told = command(TABLE, ROWS["m/svd-40"], plan["m/svd-40"].jobs)
    assert "--data imagefolder:PATH/samples --checkpoints PATH --seeds 0" in told
    assert str(tmp_path) not in told
    assert "--data hf:a/b" in command(TABLE, ROWS["m/svd-40"], [replace(plan["m/svd-40"].jobs[0], data="hf:a/b")])


def test_where_the_numbers_come_from(tmp_path: Path) -> None:
    fill(tmp_path)
    plan = read_plan(tmp_path, TABLE)
    key = jobs_of(plan["rows"]["m/svd-40"])[1].key
    for run in (f"offline-run-20260102_030405-{key}-new", f"offline-run-20260203_040506-{key}-0123abcd"):
        (tmp_path / "wandb" / run).mkdir(parents=True)
    told = details(tmp_path, TABLE, plan)
    assert list(told) == ["m/baseline", "m/svd-40", "m/ours-40", "m/ours-60"]  # n/svd-40 has no jobs
    svd, half, never = (told[name] for name in ("m/svd-40", "m/ours-40", "m/ours-60"))
    assert [job["key"] for job in svd["jobs"]] == [job.key for job in jobs_of(plan["rows"]["m/svd-40"])]
    assert all(find_result(tmp_path, job) for job in jobs_of(plan["rows"]["m/svd-40"]))
    assert [job["commit"] for job in svd["jobs"]] == ["0123abcd", "0123abcd with changes"]
    assert (svd["jobs"][1]["seed"], svd["jobs"][1]["seconds"], svd["jobs"][0]["wandb"]) == (1, 11.0, None)
    assert (svd["jobs"][1]["wandb"], svd["jobs"][1]["date"]) == (None, None)  # both runs are of other sources
    assert [job["seed"] for job in half["jobs"]] == [0]
    assert (never["jobs"], never["layers"]) == ([], [])


def test_a_run_of_wandb_is_found_by_the_job_and_its_revisions() -> None:
    job = make_plan(TABLE, Options(), IMAGES)[0].jobs[0]
    made = result(job, "new", 90.0)
    code = digest(made)
    runs = [
        f"offline-run-2026010{day}_030405-{job.key}-{source}" for day, source in ((4, code), (2, code), (1, "0" * 8))
    ]
    told = provenance(made, runs)
    assert (told["wandb"], told["date"]) == (f"{job.key}-{code}", "2026-01-02")
    assert provenance(made, runs[2:])["wandb"] is None


def test_layers_are_means_over_the_seeds() -> None:
    def one(rank: int | None, error: float | None, held_out: float) -> dict[str, Any]:
        layer = {"name": "a", "rank": rank, "relative_error_held_out": held_out}
        return {"layers": [layer | ({} if error is None else {"relative_error": error})]}

    expected = [{"name": "a", "rank": 5.0, "relative_error": 0.5, "relative_error_held_out": pytest.approx(0.2)}]
    assert layers([one(4, None, 0.1), one(6, 0.5, 0.3)]) == expected
    assert layers([one(None, None, 0.1)])[0]["rank"] is None
    assert layers([]) == []


def test_only_the_whole_validation_set_is_imagenet() -> None:
    def plan(images: Images, options: Options) -> dict[str, Any]:
        table = replace(TABLE, rows=(ROWS["m/baseline"],))
        return as_json(table, options, images, make_plan(table, options, images))

    def real(count: int, limit: int | None = None) -> dict[str, Any]:
        found = plan(IMAGES, Options(limit=limit))
        for entry in found["rows"].values():
            entry["jobs"] = [job | {"standin": False, "images": f"1281167+{count}"} for job in entry["jobs"]]
        return found

    assert on_imagenet(real(50_000))
    assert not on_imagenet(real(1000))
    assert not on_imagenet(real(50_000, limit=5000))
    assert not on_imagenet(plan(IMAGES, Options()))
    assert not on_imagenet({"rows": {}})
